"""Figures of a sweep, and the check of the paper's plateau over tau."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_wsss.figures.save import save_figure
from ray_wsss.sweeps.trials import Configuration, Mode, Trial, is_seed, varied

PLATEAU_TAU = (0.4, 0.7)
"""Range of tau over which the paper's CAMs change by less than `PLATEAU_POINTS` in mIoU."""
PLATEAU_POINTS = 1.0
"""Limit of the change, exclusive, in points (% of mIoU)."""
TAU = "cpm.tau"
_COLOURS = {"finished": "tab:blue", "stopped": "tab:orange", "failed": "tab:red"}


def save_trials_figure(trials: Sequence[Trial], metric: str, mode: Mode, path: Path) -> None:
    """Draw the last score of each trial with the best so far, and the scores over iterations."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    over_trials, over_iterations = figure.subplots(1, 2)
    _scatter(over_trials, trials, metric, {trial.number: trial.number for trial in trials})
    best: list[tuple[int, float]] = []
    for trial in trials:
        score = trial.score(metric)
        if trial.status == "finished" and score is not None:
            value = 100 * score
            pick = max if mode == "max" else min
            best.append((trial.number, pick(value, best[-1][1]) if best else value))
    best += [(trials[-1].number, best[-1][1])] if best else []
    if best:
        over_trials.step(*zip(*best), where="post", color="grey", lw=1, label="best so far", zorder=0)
    over_trials.set(xlabel="trial", ylabel=f"{metric} in %", title="Last score of each trial")
    over_trials.xaxis.get_major_locator().set_params(integer=True)
    for trial in trials:
        points = [(entry["iteration"], 100 * entry[metric]) for entry in trial.curve if metric in entry]
        if points:
            colour = _COLOURS.get(trial.status, "grey")
            over_iterations.plot(*zip(*points), "-o", ms=3, lw=1, color=colour, alpha=0.7)
    over_iterations.set(xlabel="iteration", title="Scores during training")
    figure.legend(*over_trials.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    save_figure(figure, path)


def save_parameters_figure(
    trials: Sequence[Trial], metric: str, log_keys: Collection[str], path: Path
) -> None:
    """Draw the last scores against each varied parameter; those in ``log_keys`` get a logarithmic axis."""
    keys = varied(trials)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(4 * columns, 3.3 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for key, cell in zip(keys, axes.flat):
        _scatter(cell, trials, metric, {trial.number: _number_or_word(trial.params[key]) for trial in trials})
        cell.set_xlabel(key)
        if key in log_keys:
            cell.set_xscale("log")
            cell.tick_params(axis="x", which="both", labelsize=8, rotation=30)
    for cell in axes.flat[len(keys) :]:
        cell.set_axis_off()
    for row in axes:
        row[0].set_ylabel(f"{metric} in %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    save_figure(figure, path)


def _scatter(axes: Axes, trials: Sequence[Trial], metric: str, x: dict[int, Any]) -> None:
    for status, colour in _COLOURS.items():
        points = [
            (x[trial.number], 100 * score)
            for trial in trials
            if trial.status == status and (score := trial.score(metric)) is not None
        ]
        if points:
            axes.scatter(*zip(*points), s=28, color=colour, label=status, zorder=2)


def _number_or_word(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Scores over the range of tau on which the paper has a plateau, in points (% of mIoU)."""

    taus: list[float]
    """Values of tau in the range whose trials all finished, ascending."""
    low: float
    """Lowest score in the range, as a mean over seeds."""
    high: float
    """Highest score in the range, as a mean over seeds."""
    seeds: int
    """Lowest number of trials at one tau."""
    noise: float | None
    """Standard deviation over seeds, averaged over tau; None with a single seed."""

    @property
    def points(self) -> float:
        """Change of the score over the range."""
        return self.high - self.low

    @property
    def shows(self) -> bool:
        """Whether the change is smaller than `PLATEAU_POINTS`."""
        return self.points < PLATEAU_POINTS

    def describe(self) -> str:
        """One sentence with the figures and the verdict."""
        verdict = "shows" if self.shows else "does not show"
        noise = f"; seeds differ by ±{self.noise:.1f} at the same tau" if self.noise is not None else ""
        return (
            f"tau from {self.taus[0]:g} to {self.taus[-1]:g}: {self.low:.1f} to {self.high:.1f} %, a change "
            f"of {self.points:.1f} points (means of {self.seeds} seeds{noise}); the paper's plateau within "
            f"{PLATEAU_POINTS:g} point {verdict}"
        )


def sweeps_tau_alone(trials: Sequence[Trial]) -> bool:
    """Whether the trials differ in tau and in nothing else except seeds."""
    return [key for key in varied(trials) if not is_seed(key)] == [TAU]


def find_plateau(ranking: Sequence[Configuration]) -> Plateau | None:
    """The plateau as the trials measured it; None with fewer than two values of tau in its range."""
    least, most = PLATEAU_TAU
    inside = [c for c in ranking if c.complete and least - 1e-9 <= c.params[TAU] <= most + 1e-9]
    scores = [100 * c.score for c in inside if c.score is not None]
    if len(scores) < 2:
        return None
    spreads = [100 * c.spread for c in inside if c.spread is not None]
    return Plateau(
        taus=sorted(c.params[TAU] for c in inside),
        low=min(scores),
        high=max(scores),
        seeds=min(len(c.trials) for c in inside),
        noise=mean(spreads) if spreads else None,
    )


def save_tau_figure(ranking: Sequence[Configuration], metric: str, path: Path) -> None:
    """Draw the score against tau: each seed, the mean over seeds, and the paper's band around the means."""
    figure = Figure(figsize=(6.5, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    measured = sorted((c for c in ranking if c.score is not None), key=lambda c: c.params[TAU])
    seeds = [
        (c.params[TAU], 100 * s) for c in measured for t in c.trials if (s := t.score(metric)) is not None
    ]
    repeated = len(seeds) > len(measured)
    if repeated:
        axes.scatter(*zip(*seeds), s=14, color="tab:blue", alpha=0.4, label="each seed")
    means = [(c.params[TAU], 100 * c.score) for c in measured if c.score is not None]
    axes.plot(*zip(*means), "-o", color="tab:blue", label="mean over seeds" if repeated else metric)
    plateau = find_plateau(ranking)
    if plateau is not None:
        middle, half = (plateau.low + plateau.high) / 2, PLATEAU_POINTS / 2
        axes.fill_between(
            PLATEAU_TAU, middle - half, middle + half, color="tab:green", alpha=0.25, lw=0,
            label="paper: within 1 point over 0.4 to 0.7",
        )  # fmt: skip
        axes.set_title(f"{plateau.points:.1f} points of change, {plateau.taus[0]:g} to {plateau.taus[-1]:g}")
    axes.set(xlabel="tau", ylabel=f"{metric} in %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
