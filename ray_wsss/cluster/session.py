"""Connecting to Ray: a cluster where there is one, else this machine."""

import json
import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which Ray to use."""

    address: str | None = None
    """Ray cluster (auto, host:port); by default $RAY_ADDRESS, else a fresh Ray on this machine."""
    verbose: bool = False
    """Show Ray's own log, progress bars and stack traces."""


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
                # Lines of our own come through a file instead (cluster.train), without Ray's among them.
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


def runs_in_a_copy() -> bool:
    """Is this process a submitted job whose working directory was uploaded with it?"""
    job = json.loads(os.environ.get(_JOB_CONFIG) or "{}")
    return bool(job.get("runtime_env", {}).get("working_dir"))


def storage_of(folder: Path) -> dict[str, Any]:
    """How Ray Train and Ray Tune are told to keep what is theirs in ``folder``, an absolute one."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    # The same client as everywhere else, with the same settings; Ray would use Arrow's.
    handler = pyarrow.fs.FSSpecHandler(filesystem_of(folder))
    inside = str(folder).partition("://")[2]
    return {"storage_path": inside, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process is given of a node."""

    cpus: float
    gpus: float = 0
    memory_gib: float = 0

    @property
    def by_name(self) -> dict[str, float]:
        """Under Ray's names, memory in bytes; without what it has none of."""
        return {kind: each for kind, each in self._all.items() if each > 0}

    @property
    def _all(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gib * 2**30}

    def __str__(self) -> str:
        return describe_resources(self._all)


def describe_resources(by_name: Mapping[str, float]) -> str:
    """``2 CPUs, 1 GPU and 4 GiB of memory``."""
    cpus, gpus, memory = (by_name.get(kind, 0) for kind in ("CPU", "GPU", "memory"))
    return f"{counted(cpus, 'CPU')}, {counted(gpus, 'GPU')} and {memory / 2**30:.3g} GiB of memory"


def counted(count: float, what: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{count:g} {what}" if count == 1 else f"{count:g} {what}s"


def check_resources(*, count: int, share: Share, what: str, spare_cpus: float = 0) -> None:
    """Raise UserError where the cluster has no room for something; Ray would wait for ever.

    Args:
        count: how many processes.
        share: of each; a process does not spread over nodes.
        what: they are, for the message.
        spare_cpus: CPUs that have to be left on one node for others.
    """
    nodes = live_nodes()
    room = sum(room_on(node, share) for node in nodes)
    cpus = sum(node.get("CPU", 0) for node in nodes)
    # Where every place is taken, what is left of the nodes may be crumbs of which none is large enough.
    left = max((node.get("CPU", 0) - room_on(node, share) * share.cpus for node in nodes), default=0)
    full = room == count and left + 1e-6 < spare_cpus
    if room < count or full or cpus - count * share.cpus < spare_cpus:
        spare = f", and {counted(spare_cpus, 'CPU')} more to read data," if spare_cpus else ""
        asked = f"{count} x {share}{spare}"
        raise UserError(f"{what}: {asked} are asked for, but the Ray cluster has {describe_nodes(nodes)}")


def describe_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    """What nodes have in all."""
    kinds = ("CPU", "GPU", "memory")
    whole = {kind: sum(node.get(kind, 0) for node in nodes) for kind in kinds}
    return f"{describe_resources(whole)} on {counted(len(nodes), 'node')}"


def live_nodes() -> list[dict[str, float]]:
    """Resources by name of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def describe_cluster() -> dict[str, Any]:
    """Nodes, CPUs, GPUs and kinds of accelerator of the cluster, for the record of a run."""
    nodes = live_nodes()
    prefix = "accelerator_type:"
    kinds = {name.removeprefix(prefix) for node in nodes for name in node if name.startswith(prefix)}
    sums = {kind.lower() + "s": sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    return {"nodes": len(nodes), **sums, "accelerators": sorted(kinds)}


def room_on(node: Mapping[str, float], share: Share) -> int:
    """How many processes fit on a node."""
    wanted = share.by_name.items()
    return min((math.floor(node.get(kind, 0) / each + 1e-6) for kind, each in wanted), default=0)
