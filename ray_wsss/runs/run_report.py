"""Counts, times and speed of a run over many images, for the user and for ``runs.json``."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_wsss.console import counted
from ray_wsss.runs.tally import Tally

Failures = list[tuple[str, str]]
"""(image id, reason) of each image that failed."""


@dataclass(kw_only=True)
class RunReport:
    """Counts and times of a run over many images."""

    total: Tally = field(default_factory=Tally)
    """Counts of the whole output, and seconds of this run by phase, summed over the actors."""
    done_before: int = 0
    """Images that earlier runs finished."""
    startup_s: float = 0.0
    """Seconds until the first actor began to work."""
    work_s: float = 0.0
    """Seconds from then until the last chunk was written."""

    @property
    def images_per_s(self) -> float:
        """Images per second of this run, failed ones included and its startup left out."""
        return (self.total.images + self.total.errors - self.done_before) / max(self.work_s, 1e-9)

    def figures(self) -> dict[str, Any]:
        """The report as plain data, for `runs.history`."""
        times = {"startup_s": round(self.startup_s, 2), "work_s": round(self.work_s, 2)}
        speed = {"images_per_s": round(self.images_per_s, 2)} if self.work_s else {}
        return asdict(self.total) | {"done_before": self.done_before} | times | speed


def describe_run(report: RunReport, what: str) -> str:
    """Summary of a run for the user: counts, speed and the phases that took longest.

    Args:
        what: past participle for the images, such as "labelled".
    """
    total = report.total
    lines = [f"{counted(total.images, 'image')} {what}, {counted(total.errors, 'error')}"]
    if report.work_s:
        speed = f"{report.images_per_s:.1f} images/s in {report.work_s:.0f} s"
        lines.append(f"{speed}, after {report.startup_s:.0f} s of starting")
        lines.append(_phases(total.seconds))
    return "\n".join(lines)


def describe_output(report: RunReport, what: str, out: Path) -> str:
    """`describe_run`, the folder of the output, and the file that lists failed images, if there are any."""
    lines = [describe_run(report, what), f"in {out}"]
    if report.total.errors:
        lines.append(f"{out / 'errors.parquet'} lists the images that failed, and why")
    return "\n".join(lines)


def _phases(seconds: dict[str, float]) -> str:
    """Shares of the phases in the actors' time, largest first, and the seconds of decoding beside them."""
    of_actors = {phase: s for phase, s in seconds.items() if phase != "decode"}
    whole = max(sum(of_actors.values()), 1e-9)
    ranked = sorted(of_actors, key=lambda phase: -of_actors[phase])
    shares = ", ".join(f"{phase} {of_actors[phase] / whole:.0%}" for phase in ranked)
    slowest = ranked[0] if ranked[0] != "wait" else "decode (the actors waited for decoded images)"
    decode = f"decoding beside them took {seconds['decode']:.1f} s"
    return f"slowest part: {slowest}; of the actors' time: {shares}; {decode}"


def describe_predictions(report: RunReport) -> str:
    """One-line summary of predictions for the user: images, speed, errors."""
    total = report.total
    speed = f"{report.images_per_s:.1f} images/s, " if report.work_s else ""
    return f"{counted(total.images, 'image')} predicted, {speed}{counted(total.errors, 'error')}"
