"""Settings by dotted key: command line, sweeps and tests all change them here."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, cast

from ray_wsss.errors import UserError, did_you_mean

LENGTHS = {
    "classifier.max_iters": "classifier.epochs",
    "cpm.warmup_iters": "cpm.warmup_epochs",
    "segmenter.max_iters": "segmenter.epochs",
}
"""Settings in iterations for which there is one in epochs, which decides them if it is given."""
_LEAST = {"classifier.epochs": "classifier.min_iters", "segmenter.epochs": "segmenter.min_iters"}
"""Settings in epochs for which there is one with the fewest iterations that they become."""


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a config with some keys changed, checked like the original.

    Args:
        config: any config dataclass.
        changes: dotted keys to values, such as ``{"cpm.tau": 0.42}``.

    Raises:
        UserError: an unknown key (the message names the nearest known one), or a value out of range.
    """
    for key, value in changes.items():
        config = _set(config, key.split("."), value, key)
    return config


def _set(config: Any, path: list[str], value: Any, key: str) -> Any:
    head, *rest = path
    names = [f.name for f in fields(config)]
    prefix = key[: len(key) - len(".".join(path))]
    if head not in names:
        hint = did_you_mean(head, names, f"known are {', '.join(prefix + n for n in names)}", prefix)
        raise UserError(f"unknown key {key}: {hint}")
    old = getattr(config, head)
    if bool(rest) != is_dataclass(old):
        has = "has settings of its own" if not rest else "has none"
        raise UserError(f"key {key} can't be set: {prefix}{head} {has}")
    if rest:
        return replace(config, **{head: _set(old, rest, value, key)})
    if isinstance(old, tuple) and isinstance(value, list):  # JSON and Tune know lists only
        value = tuple(cast(list[Any], value))
    try:
        return replace(config, **{head: value})
    except UserError as error:  # names the section alone, which two parts of a recipe may share
        raise UserError(str(error).replace(f"{config.section}.{head} ", f"{key} ", 1)) from None


def flatten(config: Any) -> dict[str, Any]:
    """All settings as dotted keys and plain values, as manifests store them and `override` takes them."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            parts = (walk(f"{prefix}{name}.", part) for name, part in cast(dict[str, Any], value).items())
            return {key: entry for part in parts for key, entry in part.items()}
        return {prefix[:-1]: list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value}

    return walk("", asdict(config))


def choose(recipe: Any, chosen: Mapping[str, Any]) -> Any:
    """``recipe`` with chosen settings, and without what would decide about a chosen length in its stead.

    Raises:
        UserError: as `override`.
    """
    return override(without_other_lengths(recipe, chosen), chosen)


def without_other_lengths(recipe: Any, chosen: Collection[str]) -> Any:
    """``recipe`` without what would decide about a chosen length of a training in its stead.

    That is epochs, if iterations were chosen, and the fewest iterations, if epochs were.

    Args:
        chosen: dotted keys that somebody has chosen, over a preset. None of them changes.
    """
    epochs = (epochs for key, epochs in LENGTHS.items() if key in chosen)
    least = (least for key, least in _LEAST.items() if key in chosen)
    changes = dict.fromkeys(epochs) | dict.fromkeys(least, 0)
    return override(recipe, {key: value for key, value in changes.items() if key not in chosen})
