"""Shapes of Label Studio, whose coordinates are percentages of the image's size, in pixels.

All functions raise ValueError with what can't be used. ``scale_xy`` is pixels per percent, for x and y.
"""

import math
from typing import Any

import numpy as np

_FARTHEST_PERCENT = 1e6
_CORNERS_OF_ELLIPSE = 128


def polygon(points: Any, scale_xy: np.ndarray) -> list[float]:
    """A polygon as COCO has it: x, y, x, y, ..."""
    if not isinstance(points, list) or len(points) < 3:
        raise ValueError(f"a polygon with the points {points!r:.40}; expected three or more")
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError("a polygon with a point that is no pair of x and y")
    return (np.array([[percent(x), percent(y)] for x, y in points]) * scale_xy).ravel().tolist()


def ellipse(value: dict[str, Any], scale_xy: np.ndarray) -> list[float]:
    """An ellipse as a polygon: x, y, x, y, ..."""
    centre_xy = pair(value, "x", "y") * scale_xy
    radii_xy = pair(value, "radiusX", "radiusY") * scale_xy
    angles = np.linspace(0, 2 * math.pi, _CORNERS_OF_ELLIPSE, endpoint=False)
    corners_xy = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii_xy
    return np.round(corners_xy @ _turn(value) + centre_xy, 2).ravel().tolist()


def box(value: dict[str, Any], scale_xy: np.ndarray) -> tuple[float, ...]:
    """Left, top, width and height in pixels of the upright box round a rectangle turned about its corner."""
    corner_xy, sides_xy = pair(value, "x", "y") * scale_xy, pair(value, "width", "height") * scale_xy
    if sides_xy.min() <= 0:
        raise ValueError("a rectangle without an area")
    corners_xy = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sides_xy @ _turn(value) + corner_xy
    low_xy, high_xy = corners_xy.min(axis=0), corners_xy.max(axis=0)
    return (*low_xy.tolist(), *(high_xy - low_xy).tolist())


def _turn(value: dict[str, Any]) -> np.ndarray:
    """Matrix that turns rows of x, y clockwise, as seen with y downwards, by ``rotation`` in degrees."""
    angle = math.radians(percent(value.get("rotation") or 0))
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def pair(value: dict[str, Any], *names: str) -> np.ndarray:
    """Numbers in percent of these names."""
    return np.array([percent(value.get(name)) for name in names])


def percent(number: Any) -> float:
    """A number in percent. Raises ValueError for anything else."""
    usable = isinstance(number, int | float) and not isinstance(number, bool)
    if not usable or not abs(number) <= _FARTHEST_PERCENT:
        raise ValueError(f"{number!r:.40} in place of a number in percent")
    return float(number)
