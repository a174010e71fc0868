"""What happened when a stage ran: when, where, with which versions, how fast.

OUT/runs.json    one entry for each time that a command worked on OUT, the last ones of them

It lies beside the manifest and is no part of it: later stages depend on the manifest, which is therefore the
same whenever and wherever a stage is run.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ray_wsss.storage import write_json
from ray_wsss.version import __version__

RUNS = "runs.json"
_KEPT = 50
_PACKAGES = ("torch", "torchvision", "timm", "segment-anything", "ray", "numpy", "pyarrow", "pillow")


@contextmanager
def recorded_run(out: Path, **where: Any) -> Iterator[dict[str, Any]]:
    """Keep a record of the run that the block is; it stays without ``seconds`` where the process was killed.

    Args:
        where: what the run was given, such as resources; plain data.

    Yields:
        A dictionary for the run's figures, which is kept as well.
    """
    figures: dict[str, Any] = {}
    record = {
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
        record |= {"seconds": round(time.perf_counter() - started, 1), "figures": figures}
        if torch.cuda.is_initialized():  # asked before, it would take memory of a GPU that is not ours
            gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
            record["machine"]["gpus"] = gpus
        write_json([*earlier, record], out / RUNS)


def load_runs(out: Path) -> list[dict[str, Any]]:
    """The records of a stage's folder, oldest first; none where there are none, or they can't be read."""
    try:
        found = json.loads((out / RUNS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def installed_versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that decide results."""
    found = {"python": platform.python_version(), "ray-wsss": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that this package is in, with "+" if files differ from it; None elsewhere."""
    package = Path(__file__).parents[1]
    try:
        # Installed into an environment that lies in somebody else's checkout, the package is not in it.
        if not (package.parent / ".git").exists():
            return None
        commit = _git(package, "rev-parse", "HEAD")
        return f"{commit}+" if _git(package, "status", "--porcelain", "--", str(package)) else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=10).stdout.strip()


def describe_machine() -> dict[str, Any]:
    """This machine: system, processor, cores, memory in GiB."""
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    found["cores"] = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
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
