"""JSON files as tools write them, with numbers and ids such as 640, 640.0, "640"."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_wsss.errors import UserError

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""
_BEYOND_SIDES = 2**31
"""No format of images can state a side as long as this."""


def as_whole(value: Any) -> int | None:
    """The whole number that ``value`` stands for (640, 640.0, "640"), or None."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int) else None


def as_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width in pixels, or None unless both are whole numbers that a side can have."""
    sides = as_whole(height), as_whole(width)
    height, width = (side if side is not None and 0 < side < _BEYOND_SIDES else None for side in sides)
    return (height, width) if height is not None and width is not None else None


def as_id(value: Any) -> str | None:
    """An id as text, equal for 7, 7.0 and "7"; None if it is no number and no text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    whole = as_whole(value) if isinstance(value, float) else value
    return None if whole is None else str(whole)


def as_box(value: Any) -> Box | None:
    """COCO's ``bbox``, or None unless it is four finite numbers with an area."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in value):
        return None
    left, top, width, height = (float(number) for number in value)
    return (left, top, width, height) if width > 0 and height > 0 else None


def read_json(path: Path, expected: str) -> Any:
    """Content of a JSON file. Raises UserError, whose message ends with ``expected``, if it is unreadable."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}); {expected}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {expected}") from None
