"""The figures of a sweep, and whether the paper's plateau over tau shows."""

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
"""The paper: tau between these changes the mIoU of the CAMs by less than a point."""
PLATEAU_POINTS = 1.0
TAU = "cpm.tau"
_COLOURS = {"finished": "tab:blue", "stopped": "tab:orange", "failed": "tab:red"}


def save_trials_figure(trials: Sequence[Trial], metric: str, mode: Mode, path: Path) -> None:
    """Draw the score over trials, with the best so far, and every trial's way to it over iterations."""
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
    over_trials.set(xlabel="trial", ylabel=f"{metric} in %", title="Last value of each trial")
    over_trials.xaxis.get_major_locator().set_params(integer=True)
    for trial in trials:
        points = [(entry["iteration"], 100 * entry[metric]) for entry in trial.curve if metric in entry]
        if points:
            colour = _COLOURS.get(trial.status, "grey")
            over_iterations.plot(*zip(*points), "-o", ms=3, lw=1, color=colour, alpha=0.7)
    over_iterations.set(xlabel="iteration", title="While it trained")
    figure.legend(*over_trials.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    save_figure(figure, path)


def save_parameters_figure(
    trials: Sequence[Trial], metric: str, log_keys: Collection[str], path: Path
) -> None:
    """Draw the score against each parameter, one panel each; ``log_keys`` on a logarithmic axis."""
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
    """How flat the score is where the paper says so. All in points, that is % of mIoU."""

    taus: list[float]
    """Values of tau in the paper's range that were measured to the end."""
    low: float
    """Least of the scores there, each a mean over seeds."""
    high: float
    seeds: int
    """Trials at each tau, at least."""
    noise: float | None
    """Mean over tau of the standard deviation over seeds."""

    @property
    def points(self) -> float:
        """How much the score changes over the range."""
        return self.high - self.low

    @property
    def shows(self) -> bool:
        """Whether that is less than the paper says."""
        return self.points < PLATEAU_POINTS

    def describe(self) -> str:
        """One sentence with the verdict."""
        verdict = "shows" if self.shows else "does not show"
        noise = f"; seeds differ by ±{self.noise:.1f} at one tau" if self.noise is not None else ""
        return (
            f"tau from {self.taus[0]:g} to {self.taus[-1]:g}: {self.low:.1f} to {self.high:.1f} %, a change "
            f"of {self.points:.1f} points (means of {self.seeds} seeds{noise}); the paper's plateau within "
            f"{PLATEAU_POINTS:g} point {verdict}"
        )


def sweeps_tau_alone(trials: Sequence[Trial]) -> bool:
    """Whether trials differ in tau, and in seeds at most."""
    return [key for key in varied(trials) if not is_seed(key)] == [TAU]


def find_plateau(ranking: Sequence[Configuration]) -> Plateau | None:
    """What the trials say of the paper's plateau; None with fewer than two values of tau in its range."""
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
    """Draw the score against tau: every seed, their mean, and the paper's claim around ours."""
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
        axes.set_title(f"{plateau.points:.1f} points over {plateau.taus[0]:g} to {plateau.taus[-1]:g}")
    axes.set(xlabel="tau", ylabel=f"{metric} in %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
