"""Settings in a TOML file: ``--config`` reads one, and a sweep writes its ``best.toml``.

preset = "demo"

[cpm]
tau = 0.42
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import choose
from ray_wsss.config.presets import DEFAULT_PRESET, PRESETS
from ray_wsss.errors import UserError
from ray_wsss.storage import replace_atomically


def load_settings(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The preset that a file names, if any, and its settings by dotted key.

    Raises:
        UserError: the file does not exist, is not TOML, or names an unknown preset.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path} can't be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"--config {path} is not readable TOML: {error}") from None
    preset = content.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--config {path}: preset is {preset}; expected one of {', '.join(PRESETS)}")
    return preset, _dotted(content)


def load_recipe(path: Path, preset: str | None = None) -> Recipe:
    """The recipe of a file: its settings replace those of ``preset``, its own or the default.

    Raises:
        UserError: as `load_settings`, an unknown key, or a value out of range.
    """
    named, settings = load_settings(path)
    return apply_settings(PRESETS[preset or named or DEFAULT_PRESET], settings, f"--config {path}")


def apply_settings(recipe: Recipe, settings: Mapping[str, Any], origin: str) -> Recipe:
    """``recipe`` with some settings replaced, lengths in iterations in place of the recipe's epochs.

    Raises:
        UserError: a setting doesn't fit; the message names ``origin``.
    """
    try:
        return choose(recipe, settings)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def save_settings(path: Path, preset: str, settings: Mapping[str, Any], comment: Sequence[str] = ()) -> None:
    """Write a file that `load_settings` reads.

    Args:
        settings: dotted keys to numbers, strings, booleans, or lists of them. None is left out, since TOML
            has no such value.
        comment: lines at the head of the file.
    """
    tables: dict[str, list[str]] = {}
    for key, value in sorted(settings.items()):
        section, _, name = key.rpartition(".")
        if value is not None:
            tables.setdefault(section, []).append(f"{name} = {_toml(value)}")
    lines = [*(f"# {line}".rstrip() for line in comment), f"preset = {_toml(preset)}"]
    for section, entries in tables.items():
        lines += ["", f"[{section}]", *entries]
    with replace_atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _dotted(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        is_table = isinstance(value, dict)
        found |= _dotted(cast(dict[str, Any], value), f"{key}.") if is_table else {key: value}
    return found


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, cast(Sequence[Any], value)))}]"
    # Numbers, booleans and strings are written alike in JSON and TOML, except this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
