"""Trials of a sweep on disk, and their ranking.

SWEEP/trials/trial_0003/trial.json  values and progress of trial 3, written while it runs
SWEEP/results.parquet               one row per trial
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import pyarrow as pa

from ray_wsss.data.schema import write_table_atomically
from ray_wsss.storage import write_json

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")
Mode = Literal["max", "min"]


@dataclass(kw_only=True)
class Trial:
    """One set of values, with the scores of the training run that tries them."""

    number: int
    """Counts from 0, in the order in which trials are drawn."""
    params: dict[str, Any]
    """Values by dotted key of the recipe."""
    max_iters: int
    """Iterations of a full training run."""
    status: Status = "waiting"
    """stopped: the scheduler ended the trial early, since others scored better."""
    error: str | None = None
    """Reason of a failure."""
    seconds: float = 0.0
    """Duration in seconds, over all attempts."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Reports with ``iteration`` and metrics, ordered by iteration."""

    @property
    def name(self) -> str:
        """Name of the trial's folder."""
        return f"trial_{self.number:04d}"

    @property
    def iteration(self) -> int:
        """Iteration of the last report, 0 before the first."""
        return int(self.curve[-1]["iteration"]) if self.curve else 0

    def score(self, metric: str) -> float | None:
        """Last value of a metric; None if it is missing or not finite."""
        value = self.curve[-1].get(metric) if self.curve else None
        return value if value is not None and math.isfinite(value) else None

    def add(self, reports: Iterable[dict[str, float]]) -> None:
        """Add reports. They replace earlier reports of the same iterations, which a resumed run repeats."""
        known = {entry["iteration"]: entry for entry in self.curve}
        known |= {entry["iteration"]: entry for entry in reports}
        self.curve = [known[iteration] for iteration in sorted(known)]

    def save(self, out: Path) -> None:
        """Write ``trial.json`` into the trial's folder in the sweep ``out``."""
        write_json(asdict(self), trial_folder(out, self.number) / "trial.json")


def trial_folder(out: Path, number: int) -> Path:
    """Folder in which a trial of the sweep ``out`` trains."""
    return out / "trials" / f"trial_{number:04d}"


def load_trial(out: Path, number: int) -> Trial:
    """Load a trial as it was last saved."""
    return Trial(**json.loads((trial_folder(out, number) / "trial.json").read_text(encoding="utf-8")))


def load_trials(out: Path) -> list[Trial]:
    """Load all trials of the sweep ``out``, ordered by number."""
    paths = (out / "trials").glob("trial_*/trial.json")
    trials = [Trial(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return sorted(trials, key=lambda trial: trial.number)


def is_seed(key: str) -> bool:
    """Whether a key is a seed. Trials that differ only in seeds repeat one configuration."""
    return key.split(".")[-1] == "seed"


def varied(trials: Sequence[Trial]) -> list[str]:
    """Keys whose values differ between trials; all keys if there is only one trial."""
    keys = list(trials[0].params) if trials else []
    return [k for k in keys if len(trials) == 1 or len({str(trial.params[k]) for trial in trials}) > 1]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One set of values, tried with one or more seeds."""

    params: dict[str, Any]
    """Values by dotted key, without seeds."""
    trials: list[Trial]
    """One trial per seed."""
    score: float | None
    """Mean of the trials' last values; None if there are none."""
    spread: float | None
    """Standard deviation over seeds; None with fewer than two."""

    @property
    def complete(self) -> bool:
        """Whether all trials ran to their end."""
        return all(trial.status == "finished" for trial in self.trials)


def rank(trials: Sequence[Trial], metric: str, mode: Mode) -> list[Configuration]:
    """Rank configurations, best first.

    Complete ones come first, by score. Others follow, those with a failed trial last, by the share of
    iterations that they reached: they trained for fewer iterations, so their scores don't compare.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        key = json.dumps(_without_seeds(trial.params), sort_keys=True)
        groups.setdefault(key, []).append(trial)
    found = [_configuration(group, metric) for group in groups.values()]
    sign = -1 if mode == "max" else 1

    def order(configuration: Configuration) -> tuple[float, ...]:
        reached = mean(t.iteration / t.max_iters for t in configuration.trials)
        failed = any(t.status == "failed" for t in configuration.trials)
        score = configuration.score
        place = (not configuration.complete, 0 if configuration.complete else failed, -reached)
        return (*place, math.inf if score is None else sign * score)

    return sorted(found, key=order)


def _configuration(trials: list[Trial], metric: str) -> Configuration:
    scores = [s for trial in trials if (s := trial.score(metric)) is not None]
    return Configuration(
        params=_without_seeds(trials[0].params),
        trials=trials,
        score=mean(scores) if scores else None,
        spread=stdev(scores) if len(scores) > 1 else None,
    )


def _without_seeds(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if not is_seed(key)}


def save_results(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """Write one row per trial: values, last metrics, status, error, seconds and curve."""
    last = [trial.curve[-1] if trial.curve else {} for trial in trials]
    metrics = list(dict.fromkeys(name for entry in last for name in entry if name != "iteration"))
    columns: dict[str, Any] = {
        "trial": [trial.number for trial in trials],
        "folder": [f"trials/{trial.name}" for trial in trials],
        "status": [trial.status for trial in trials],
        "error": pa.array([trial.error for trial in trials], pa.string()),
        "seconds": [trial.seconds for trial in trials],
        "iteration": [trial.iteration for trial in trials],
        "max_iters": [trial.max_iters for trial in trials],
    }
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    columns |= {key: _column([trial.params.get(key) for trial in trials]) for key in keys}
    columns |= {name: pa.array([entry.get(name) for entry in last], pa.float64()) for name in metrics}
    measured = [[entry for entry in trial.curve if metric in entry] for trial in trials]
    columns["curve_iteration"] = [[int(entry["iteration"]) for entry in entries] for entries in measured]
    columns[f"curve_{metric}"] = [[entry[metric] for entry in entries] for entries in measured]
    write_table_atomically(pa.table(columns), path)


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # mixed types, which Arrow can't hold in one column
        return pa.array([json.dumps(value) for value in values])
