"""Records of a stage's runs: when, where, with which versions and how fast each one ran.

OUT/runs.json    list of `RunRecord`, one for each run that worked on OUT, oldest first, the last 50 only

The records are kept out of the manifest because later stages depend on the manifest's hash, which must not
change with the time and place of a run.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack, cast

import torch

from ray_wsss.storage import write_json
from ray_wsss.version import __version__

RUNS = "runs.json"
_KEPT = 50
_PACKAGES = ("torch", "torchvision", "timm", "segment-anything", "ray", "numpy", "pyarrow", "pillow")


class Machine(TypedDict):
    """The machine that started a run."""

    system: str
    """Operating system and architecture, such as "Linux x86_64"."""
    processor: str
    """Model name; may be empty."""
    cores: int | None
    """CPU cores that the process may use."""
    memory_gib: NotRequired[float]
    """Missing on Windows."""
    gpus: NotRequired[list[str]]
    """Names of the GPUs; missing unless the process itself used CUDA."""


class RunSetup(TypedDict, total=False):
    """Resources, workers and cluster of a run, as plain data."""

    resources: dict[str, Any]
    """Fields of `config.resources.Resources`."""
    workers: dict[str, Any]
    """Fields of `config.resources.Workers`."""
    cluster: dict[str, Any]
    """Nodes, CPUs, GPUs and accelerators of the Ray cluster."""


class RunRecord(RunSetup):
    """One run of a command on an output folder."""

    began: str
    """Time of the start in UTC, in ISO format."""
    seconds: float | None
    """Duration; None until the run ends, and for good if its process is killed."""
    versions: dict[str, str]
    """See `installed_versions`."""
    commit: str | None
    """See `git_commit`."""
    machine: Machine
    error: NotRequired[str]
    """Type and first line of the exception that ended the run."""
    figures: NotRequired[dict[str, Any]]
    """Counts and times; missing until the run ends."""


@contextmanager
def recorded_run(out: Path, **where: Unpack[RunSetup]) -> Generator[dict[str, Any]]:
    """Record the ``with`` block as one run in ``out/runs.json``.

    The record is written when the block begins and again when it ends.

    Args:
        where: resources, workers and cluster of the run, recorded with it.

    Yields:
        A dictionary to fill with the run's figures, recorded when the block ends.
    """
    figures: dict[str, Any] = {}
    record: RunRecord = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
        "versions": installed_versions(),
        "commit": git_commit(),
        "machine": describe_machine(),
        **where,
    }
    earlier = load_runs(out)[-(_KEPT - 1) :]
    write_json([*earlier, record], out / RUNS)
    started = time.perf_counter()
    try:
        yield figures
    except BaseException as error:
        told = next(iter(str(error).splitlines()), "")
        record["error"] = f"{type(error).__name__}: {told}" if told else type(error).__name__
        raise
    finally:
        record["seconds"] = round(time.perf_counter() - started, 1)
        record["figures"] = figures
        if torch.cuda.is_initialized():  # asking for names would initialise it, which takes GPU memory
            gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
            record["machine"]["gpus"] = gpus
        write_json([*earlier, record], out / RUNS)


def load_runs(out: Path) -> list[dict[str, Any]]:
    """The records in a stage's folder, oldest first; empty if ``runs.json`` is missing or can't be read.

    Records of other versions of ray_wsss may have fewer keys than `RunRecord`.
    """
    try:
        found = json.loads((out / RUNS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    entries = cast(list[Any], found) if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def installed_versions() -> dict[str, str]:
    """Versions of Python, this package and the installed packages that decide results, by name."""
    found = {"python": platform.python_version(), "ray-wsss": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the git checkout that holds this package, with "+" if the package has changes; else None."""
    package = Path(__file__).parents[1]
    try:
        # An environment may lie inside another project's checkout, whose commit says nothing of the package.
        if not (package.parent / ".git").exists():
            return None
        commit = _git(package, "rev-parse", "HEAD")
        return f"{commit}+" if _git(package, "status", "--porcelain", "--", str(package)) else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=10).stdout.strip()


def describe_machine() -> Machine:
    """System, processor, usable cores and memory of this machine."""
    found: Machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
    }
    if sys.platform != "win32":
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
