"""Charts as plain numbers. The templates draw them as SVG, in the colours of the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 320, 150
"""Size of a chart in units of its SVG view box."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 22
"""Margins around the plotted area, in the same units."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis."""

    at: float
    """Position in the view box."""
    text: str


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """One curve over iterations."""

    title: str
    path: str
    """SVG path of the curve."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    last: str
    """Last value, as text."""
    last_xy: tuple[float, float]
    """Position of the last value in the view box."""
    summary: str
    """Description for readers who can't see the curve."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a histogram, in units of the view box."""

    x: float
    y: float
    """``x`` and ``y``: upper left corner."""
    width: float
    height: float
    text: str
    """Range of values, and their count."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts over equal ranges of [0, 1]."""

    title: str
    note: str
    """Explanation beside the title."""
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str
    """Description for readers who can't see the bars."""


def line_chart(title: str, xs: Sequence[float], ys: Sequence[float]) -> LineChart | None:
    """Chart of the points with finite ``ys``; None if there are none."""
    points = [(x, y) for x, y in zip(xs, ys) if math.isfinite(y)]
    if not points:
        return None
    low, high = min(y for _, y in points), max(y for _, y in points)
    y_values = _tick_values(low, high)
    x_values = _tick_values(0, max(x for x, _ in points))
    place_x = _scale(0, max(x for x, _ in points), _LEFT, WIDTH - _RIGHT)
    place_y = _scale(min(low, y_values[0]), max(high, y_values[-1]), HEIGHT - _BOTTOM, _TOP)
    placed = [(round(place_x(x), 1), round(place_y(y), 1)) for x, y in points]
    range_told = f"from {_short(points[0][1])} to {_short(points[-1][1])}"
    return LineChart(
        title=title,
        path="M" + "L".join(f"{x:g} {y:g}" for x, y in placed),
        x_ticks=tuple(Tick(at=round(place_x(v), 1), text=_short(v)) for v in x_values),
        y_ticks=tuple(Tick(at=round(place_y(v), 1), text=_short(v)) for v in y_values),
        last=_short(points[-1][1]),
        last_xy=placed[-1],
        summary=f"{title} over {points[-1][0]:,.0f} iterations: {range_told}, lowest {_short(low)}, "
        f"highest {_short(high)}",
    )


def histogram(title: str, note: str, counts: Sequence[int]) -> Histogram:
    """Histogram of counts over equal ranges of [0, 1]."""
    total, most = sum(counts), max(counts)
    y_values = [v for v in _tick_values(0, most) if v == int(v)]
    place_y = _scale(0, max(most, 1), HEIGHT - _BOTTOM, _TOP)
    width = (WIDTH - _LEFT - _RIGHT) / len(counts)
    bars = []
    for k, count in enumerate(counts):
        low, high = k / len(counts), (k + 1) / len(counts)
        y = place_y(count)
        text = f"{low:.2f} to {high:.2f}: {count:,}"
        x = _LEFT + k * width
        bars.append(
            Bar(x=round(x + 0.5, 1), y=round(y, 1), width=round(width - 1, 1), text=text,
                height=round(HEIGHT - _BOTTOM - y, 1))
        )  # fmt: skip
    mean = sum((k + 0.5) / len(counts) * count for k, count in enumerate(counts)) / max(total, 1)
    place_x = _scale(0, 1, _LEFT, WIDTH - _RIGHT)
    return Histogram(
        title=title,
        note=note,
        bars=tuple(bars),
        x_ticks=tuple(Tick(at=round(place_x(v), 1), text=f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)),
        y_ticks=tuple(Tick(at=round(place_y(v), 1), text=_short(v)) for v in y_values),
        summary=f"{title}: {total:,} values, mean about {mean:.2f}",
    )


def _tick_values(low: float, high: float) -> list[float]:
    if high <= low:
        high = low + (abs(low) or 1) * 0.1
    values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = (high - low) * 0.02
    return [float(v) for v in values if low - slack <= v <= high + slack] or [low]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Linear map from [low, high] to [start, end]."""
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:.3g}M"
    return f"{value:.3g}"
