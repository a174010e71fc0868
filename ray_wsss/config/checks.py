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


LEAST_TILE_PX = 64
"""Least side of a tile, in pixels."""


def check_tiles(config: Any) -> None:
    """Raise UserError unless ``tile_px`` and ``tile_overlap`` fit each other and ``max_side_px``."""
    section, most = config.section, config.max_side_px
    sides = f"a multiple of 4 from {LEAST_TILE_PX} to {most} ({section}.max_side_px), or None"
    check(config, lambda v: v is None or (LEAST_TILE_PX <= v <= most and v % 4 == 0), "tile_px", sides)
    if config.tile_px is None:
        check(config, lambda v: v is None, "tile_overlap", f"None without {section}.tile_px")
    else:
        half = config.tile_px // 2
        pixels = f"8 to {half} pixels (half of {section}.tile_px), or None"
        check(config, lambda v: v is None or 8 <= v <= half, "tile_overlap", pixels)


def overlap_of_tiles(config: Any) -> int:
    """Pixels that neighbouring tiles share, as `check_tiles` allows; 0 without tiles."""
    if config.tile_px is None:
        return 0
    return config.tile_px // 8 if config.tile_overlap is None else config.tile_overlap


def check_choices(config: Any) -> None:
    """Raise UserError for a `Literal` field whose value is not one of its choices."""
    for f in fields(config):
        if get_origin(f.type) is Literal:
            choices = get_args(f.type)
            check(config, choices.__contains__, f.name, f"one of {', '.join(map(str, choices))}")
