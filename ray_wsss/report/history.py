"""The report's rows about stages: where and when they ran, their speeds, and the curves of training."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ray_wsss.console import counted
from ray_wsss.report.charts import LineChart, line_chart
from ray_wsss.report.find_run import StageFolder
from ray_wsss.report.html import PhaseRow, PipelineRow, StageRow, Training
from ray_wsss.runs.tally import COUNTS
from ray_wsss.training.checkpoints import PROGRESS

_CURVES = {
    "loss_cls": "loss: image labels",
    "loss_ssc": "loss: SSC",
    "loss_cpm": "loss: CPM",
    "loss_seg": "loss: pseudo labels",
    "val_miou": "validation mIoU",
    "val_miou_best_threshold": "validation mIoU, best threshold",
    "lr": "learning rate",
    "seconds_per_step": "seconds per step",
}
"""Titles of curves by name in the history of a training."""


def describe_stage(folder: StageFolder) -> StageRow:
    """Row of a stage, from its manifest and the records of its runs."""
    runs = list(folder.runs)
    last = runs[-1] if runs else {}
    seconds = [run["seconds"] for run in runs if run.get("seconds") is not None]
    lost = len(runs) - len(seconds)
    interrupted = f", {lost} of them cut off" if lost else ""
    seeds = {k: v for k, v in folder.settings.items() if k.split(".")[-1] == "seed"}
    return StageRow(
        name=folder.stage,
        path=str(folder.path),
        state=folder.state,
        version=folder.version,
        seeds=", ".join(f"{v}" for v in seeds.values()),
        began=_date(last.get("began")),
        took=_duration(sum(seconds)) if seconds else "",
        runs=f"{len(runs)} runs{interrupted}" if len(runs) > 1 or lost else "",
        where=_where(last),
        versions=_versions(last, folder.version),
        settings={name: _plain(value) for name, value in folder.settings.items()},
    )


def describe_work(folder: StageFolder) -> PipelineRow | None:
    """Counts and speed of a stage that processes images; None for other stages.

    The speed is that of the run that processed the most images, the counts are those of the last run.
    """
    worked = [run["figures"] for run in folder.runs if "work_s" in run.get("figures", {})]
    if not worked:
        return None
    figures = max(worked, key=lambda f: f["images"] + f["errors"] - f["done_before"])
    done = figures["images"] + figures["errors"] - figures["done_before"]
    seconds: dict[str, float] = figures["seconds"]
    whole = sum(s for phase, s in seconds.items() if phase != "decode") or 1.0
    phases = [
        PhaseRow(
            name=phase,
            seconds=s,
            share=s / whole if phase != "decode" else None,
            images_per_s=done / s if s else 0.0,
        )
        for phase, s in sorted(seconds.items(), key=lambda entry: -entry[1])
    ]
    speed = f"{figures.get('images_per_s', 0):.1f} images/s in {_duration(figures['work_s'])}"
    again = f"; {figures['done_before']:,} images were done in earlier runs" if figures["done_before"] else ""
    return PipelineRow(
        name=f"{folder.stage} ({folder.path.name})",
        counts={name: worked[-1][name] for name in COUNTS},
        speed=f"{speed}, after {figures['startup_s']:.0f} s of starting{again}",
        phases=phases,
    )


def describe_training(folder: StageFolder) -> Training | None:
    """Curves of a training, finished or not; None if it has no history."""
    history = _load_history(folder.path)
    if not history:
        return None
    charts: list[LineChart] = []
    for name, title in _CURVES.items():
        points = [(entry["iteration"], entry[name]) for entry in history if name in entry]
        chart = line_chart(title, *zip(*points)) if points else None
        if chart is not None:
            charts.append(chart)
    # The first entry includes warm-up.
    speeds = [entry["seconds_per_step"] for entry in history[1:] if "seconds_per_step" in entry]
    speed = f", {sum(speeds) / len(speeds):.2f} s per step" if speeds else ""
    state = "" if folder.state == "finished" else ", unfinished"
    note = f"{history[-1]['iteration']:,.0f} iterations{speed}{state}"
    return Training(name=f"{folder.stage} ({folder.path.name})", note=note, charts=charts)


def _load_history(folder: Path) -> list[dict[str, float]]:
    """History of the finished training, else of its last readable checkpoint; empty without either."""
    checkpoints = [*folder.glob(f"checkpoints/*/{PROGRESS}"), *folder.glob(f"*/checkpoint_*/{PROGRESS}")]
    for path in (folder / PROGRESS, *sorted(checkpoints, key=lambda path: path.parent.name, reverse=True)):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["history"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return [entry for entry in found if isinstance(entry, dict) and "iteration" in entry]
    return []


def _versions(run: Mapping[str, Any], version: str) -> dict[str, str]:
    """Package versions of a run, the one of ray-wsss with its commit, such as "0.2.0 (26b4046a+)".

    A "+" means uncommitted changes. Records of earlier versions have no commit.
    """
    versions = dict(run.get("versions", {}))
    commit: str | None = run.get("commit")
    if commit:
        short = commit.removesuffix("+")[:8] + ("+" if commit.endswith("+") else "")
        versions["ray-wsss"] = f"{versions.get('ray-wsss', version)} ({short})"
    return versions


def _where(run: Mapping[str, Any]) -> list[str]:
    """Lines about machine, cluster and resources of a run."""
    machine, cluster = run.get("machine", {}), run.get("cluster", {})
    lines = []
    if machine:
        memory = f", {machine['memory_gib']:g} GiB" if "memory_gib" in machine else ""
        gpus = "".join(f", {name}" for name in machine.get("gpus", []))
        cores = f"{machine['cores']} cores of {machine['processor'] or 'an unknown processor'}"
        lines.append(f"{cores}{memory}{gpus}, {machine['system']}")
    if cluster:
        nodes = counted(cluster["nodes"], "node")
        kinds = f" ({', '.join(cluster['accelerators'])})" if cluster.get("accelerators") else ""
        lines.append(f"Ray cluster: {nodes}, {cluster['cpus']:g} CPUs, {cluster['gpus']:g} GPUs{kinds}")
    for kind in ("resources", "workers"):
        given = run.get(kind, {})
        if given:
            told = {name.replace("_", " "): value for name, value in given.items() if value is not None}
            lines.append(", ".join(f"{name}: {_short(value)}" for name, value in told.items()))
    return lines


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _date(text: str | None) -> str:
    if text is None:
        return ""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
