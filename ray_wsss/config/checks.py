"""Checks that the settings share."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from ray_wsss.errors import UserError


def check(config: Any, ok: Callable[[Any], bool], names: str, expected: str) -> None:
    """Raise UserError for the first field of ``names`` (separated by spaces) whose value is not ok."""
    for name in names.split():
        value = getattr(config, name)
        try:
            good = ok(value)
        except (TypeError, IndexError):  # such as a word where a number belongs
            good = False
        if not good:
            raise UserError(f"{config.section}.{name} is {value}; expected {expected}")


def check_choices(config: Any) -> None:
    """Raise UserError for a `Literal` field whose value is not one of its choices."""
    for f in fields(config):
        if get_origin(f.type) is Literal:
            choices = get_args(f.type)
            check(config, choices.__contains__, f.name, f"one of {', '.join(map(str, choices))}")
