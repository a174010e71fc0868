"""Results of a sweep: results.parquet, best.toml and figures."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import choose, flatten
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.settings_file import save_settings
from ray_wsss.errors import UserError
from ray_wsss.sweeps.figures import (
    find_plateau,
    save_parameters_figure,
    save_tau_figure,
    save_trials_figure,
    sweeps_tau_alone,
)
from ray_wsss.sweeps.trials import Configuration, Mode, Trial, rank, save_results

BEST = "best.toml"
RESULTS = "results.parquet"


def conclude_sweep(
    trials: Sequence[Trial],
    out: Path,
    *,
    recipe: Recipe,
    preset: str,
    sections: Collection[str],
    metric: str,
    mode: Mode,
    log_keys: Collection[str] = (),
) -> tuple[list[Configuration], list[str]]:
    """Write results, figures and the best configuration into ``out``.

    Args:
        recipe: settings that all trials share.
        preset: name of the preset that ``recipe`` started from; ``best.toml`` holds the differences from it.
        sections: sections of the recipe that trials depend on.
        log_keys: parameters to draw on a logarithmic axis.

    Returns:
        Configurations, best first, and lines to print.

    Raises:
        UserError: no trial ran to its end; results and figures are written nevertheless.
    """
    ranking = rank(trials, metric, mode)
    save_results(trials, metric, out / RESULTS)
    save_trials_figure(trials, metric, mode, out / "trials.png")
    save_parameters_figure(trials, metric, log_keys, out / "parameters.png")
    lines = []
    if sweeps_tau_alone(trials):
        save_tau_figure(ranking, metric, out / "tau.png")
        plateau = find_plateau(ranking)
        lines += [plateau.describe()] if plateau is not None else []
    best = next((c for c in ranking if any(trial.status == "finished" for trial in c.trials)), None)
    if best is None or best.score is None:
        failures = (f"the first failure was {trial.error}" for trial in trials if trial.error)
        reason = next(failures, "all were stopped")
        raise UserError(f"none of the {len(trials)} trials ran to its end: {reason}")
    what = f"{metric} {100 * best.score:.1f} % at the end of training"
    comment = [f"The best of {len(ranking)} configurations, {what}.", _trials_of(best)]
    save_settings(out / BEST, preset, best_settings(best, recipe, preset, sections), comment)
    return ranking, [*lines, f"the best has {what}; --config {out / BEST} gives its settings to any command"]


def best_settings(
    best: Configuration, recipe: Recipe, preset: str, sections: Collection[str]
) -> dict[str, Any]:
    """Settings of a configuration by dotted key: the swept ones, and others that differ from the preset."""
    settings, defaults = flatten(choose(recipe, best.params)), flatten(PRESETS[preset])
    # With a single seed, keep it: training again then gives the same network.
    seeds = best.trials[0].params if len(best.trials) == 1 else {}
    kept = {
        key: value
        for key, value in settings.items()
        if key.split(".")[0] in sections and (key in best.params or value != defaults[key])
    }
    return kept | seeds


def _trials_of(best: Configuration) -> str:
    return f"Trained in {', '.join(f'trials/{trial.name}' for trial in best.trials)}."
