"""Connecting to Ray: a cluster where there is one, else this machine."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext

from ray_wsss.errors import UserError


@contextmanager
def ray_session(address: str | None = None, *, verbose: bool = False) -> Iterator[None]:
    """Ray for the length of a command; one that is already up is used and left as it is.

    Args:
        address: of a cluster (``auto``, ``host:port``, ``ray://host:port``). None: ``$RAY_ADDRESS`` or the
            job's cluster, else a fresh one on this machine.
        verbose: let Ray log.

    Raises:
        UserError: there is no cluster at ``address``.
    """
    if ray.is_initialized():
        yield
        return
    # A token file that ray.init() would make locks later clusters of this user out of the job CLI.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A Parquet read would start up to 32 actors for the footers of files that one reads at once.
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    level = logging.INFO if verbose else logging.ERROR
    local = address is None and "RAY_ADDRESS" not in os.environ
    try:
        ray.init(
            address=address,
            logging_level=level,
            log_to_driver=True,
            include_dashboard=None if verbose else False if local else None,
            # Ray Data's operators and its checks want a few slots; slots are not threads.
            num_cpus=max(4, os.cpu_count() or 1) if local else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS')}: {error}") from error
    context = DataContext.get_current()
    context.enable_progress_bars = verbose or sys.stderr.isatty()
    context.print_on_execution_start = verbose
    if not verbose:
        for name in ("ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(*, cpus: float, gpus: float, what: str) -> None:
    """Raise UserError where the cluster can never give ``what`` it asks for; Ray would wait for ever."""
    have = ray.cluster_resources()
    for name, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > have.get(name, 0):
            raise UserError(f"{what} wants {wanted:g} {name}s, the cluster has {have.get(name, 0):g}")
