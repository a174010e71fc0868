"""Connecting to Ray: a cluster where there is one, else this machine."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.data import DataContext

from ray_wsss.errors import UserError
from ray_wsss.storage import filesystem_of, is_remote

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray's job server tells a job what it was submitted with."""


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
    started = not ray.is_initialized()
    if started:
        _start(address or os.environ.get("RAY_ADDRESS") or "local", verbose)
    with warnings.catch_warnings():
        _set_loudness(verbose)
        hook = threading.excepthook
        if not verbose:
            threading.excepthook = partial(_pass_over_listing, hook)
        try:
            yield
        finally:
            threading.excepthook = hook
            if started:
                ray.shutdown()


def _pass_over_listing(
    hook: Callable[[threading.ExceptHookArgs], Any], args: threading.ExceptHookArgs
) -> None:
    """Ray Data lists files in threads; one is interrupted where the listing ends early, and says so."""
    name = args.thread.name if args.thread is not None else ""
    if not (args.exc_type is InterruptedError and name.endswith("completion-signaler")):
        hook(args)


def _start(address: str, verbose: bool) -> None:
    local = address == "local"
    # A token file that ray.init() would make locks later clusters of this user out of the job CLI.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A Parquet read would start up to 32 actors for the footers of files that one reads at once.
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    if local:
        # Seconds between looks at the workers: on one machine looking is cheap, and a run ends sooner.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    try:
        with nullcontext() if verbose else _quiet_core():
            ray.init(
                address=address,
                logging_level=logging.INFO if verbose else logging.CRITICAL,
                # Lines of our own come through a file instead (`cluster.workers`), without Ray's among them.
                log_to_driver=verbose,
                include_dashboard=None if verbose else False if local else None,
                # Ray Data's operators and its checks want a few slots; slots are not threads.
                num_cpus=max(4, os.cpu_count() or 1) if local else None,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        what = "Ray does not start on this machine" if local else f"there is no Ray cluster at {address}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what}: {reason}") from error


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Start Ray's C++ core without its log, which it writes to this process's stderr past Python's logging.

    The variable that sets its level is announced by a line of its own, hence the closed streams.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in (1, 2)}
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        for stream in saved:
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        for stream, copy in saved.items():
            os.dup2(copy, stream)
            os.close(copy)


def _set_loudness(verbose: bool) -> None:
    """Ray's warnings, loggers and progress bars in this process; a failure is raised, so it needs no log."""
    if not verbose:
        warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL + 1)
    context = DataContext.get_current()
    context.enable_progress_bars = verbose or sys.stderr.isatty()
    context.print_on_execution_start = verbose
    context.raise_original_map_exception = True  # else what a stage raised arrives as text alone


def storage_of(folder: Path) -> dict[str, Any]:
    """How Ray Train and Ray Tune are told to keep what is theirs in ``folder``, an absolute one."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    # The same client as everywhere else, with the same settings; Ray would use Arrow's.
    handler = pyarrow.fs.FSSpecHandler(filesystem_of(folder))
    inside = str(folder).partition("://")[2]
    return {"storage_path": inside, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}
