"""Ranked table of a sweep for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ray_wsss.sweeps.trials import Configuration, Trial, varied


def ranking_table(ranking: Sequence[Configuration], metric: str) -> Table:
    """Table of configurations, best first: values, score in %, and outcome of their trials."""
    trials = [trial for configuration in ranking for trial in configuration.trials]
    keys = [key for key in varied(trials) if key in ranking[0].params]
    repeated = any(len(configuration.trials) > 1 for configuration in ranking)
    table = Table(title=f"{metric} in %, best first")
    columns = ["", "trials" if repeated else "trial", *_headings(keys), "score", *(["±"] if repeated else [])]
    for title in columns:
        table.add_column(title, justify="right")
    table.add_column("outcome")
    for place, configuration in enumerate(ranking, start=1):
        spread = [percent(configuration.spread)] if repeated else []
        table.add_row(
            str(place) if configuration.complete else "",
            " ".join(str(trial.number) for trial in configuration.trials),
            *(format_value(configuration.params[key]) for key in keys),
            percent(configuration.score),
            *spread,
            ", ".join(dict.fromkeys(_outcome(trial) for trial in configuration.trials)),
        )
    return table


def _headings(keys: Sequence[str]) -> list[str]:
    """Keys without their section if they still differ, else the full keys."""
    short = [key.split(".")[-1] for key in keys]
    return short if len(set(short)) == len(short) else list(keys)


def _outcome(trial: Trial) -> str:
    if trial.status == "stopped":
        return f"stopped at {trial.iteration} of {trial.max_iters}"
    return f"{trial.status}: {trial.error}" if trial.error else trial.status


def describe_params(params: Mapping[str, Any]) -> str:
    """Keys and values in one line."""
    return ", ".join(f"{key} {format_value(value)}" for key, value in params.items())


def format_value(value: Any) -> str:
    """A value as text; floats get three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """A share in [0, 1] as %, with one decimal; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"
