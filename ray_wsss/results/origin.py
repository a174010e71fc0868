"""When, where and from which code a measurement comes, by the records that its stages left."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from ray_wsss.runs.history import RUNS


def origin_of(folder: Path, command: str) -> str:
    """A line such as "26 November 2026, commit 1109f3c, 2 cores of an Intel Xeon, no GPU: `COMMAND`".

    Args:
        folder: output of a measurement; the stages' records (``runs.json``) lie at any depth below it.
    """
    records = _records(folder)
    if not records:
        return f"`{command}`"
    dates = sorted(datetime.fromisoformat(record["began"]) for record in records)
    commits = sorted({(record["commit"] or "unknown")[:7] for record in records})
    what = "commit" if len(commits) == 1 else "commits"
    machines = dict.fromkeys(_machine(record["machine"]) for record in records)
    return f"{_days(dates)}, {what} {', '.join(commits)}, {' and '.join(machines)}: `{command}`"


def _records(folder: Path) -> list[dict[str, Any]]:
    """Records of the stages below a folder; without any, those of the folder itself."""
    below = [Path(at) / RUNS for at, _, files in os.walk(folder, followlinks=True) if RUNS in files]
    own = folder / RUNS
    files = sorted(path for path in below if path != own) or [path for path in below if path == own]
    return [record for path in files for record in _load(path)]


def _load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def _days(dates: list[datetime]) -> str:
    first, last = (f"{date.day} {date:%B %Y}" for date in (dates[0], dates[-1]))
    return first if first == last else f"{first} to {last}"


def _machine(machine: dict[str, Any]) -> str:
    name = machine["processor"].replace("(R)", "").replace("(TM)", "").removesuffix(" Processor").strip()
    gpus = ", ".join(machine.get("gpus") or ()) or "no GPU"
    return f"{machine['cores']} cores ({name or machine['system']}), {gpus}"
