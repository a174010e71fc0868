"""Overview picture of the pipeline: one row per image, one column per stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from ray_wsss.figures.save import save_figure
from ray_wsss.label_format import LabelMap, ignore_label

COLOURS = np.array(
    [
        (0, 0, 0),
        *[tuple(int(255 * v) for v in colormaps["tab10"](k)[:3]) for k in (3, 8, 2, 9, 0, 6, 1, 4, 5, 7)],
    ],
    np.uint8,
)
"""RGB colours (11, 3) of the background and ten classes; further classes repeat those of the ten."""

_LEGEND_INCHES, _LINE_INCHES = 1.2, 0.2
"""Width of an entry of the legend, and height of its lines."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OverviewRow:
    """One image and the results of the stages. ``image`` is (H, W, 3) uint8 RGB, other arrays are (H, W)."""

    image: NDArray[np.uint8]
    cams: dict[str, NDArray[np.float32]]
    """Highest CAM over the classes, in [0, 1], by column title."""
    points: list[tuple[int, float, float]]
    """(class index, x, y) in pixels."""
    beside: Sequence[tuple[int, float, float]] = ()
    """Points that lie beside their object, likewise."""
    boxes: Sequence[tuple[int, Sequence[float]]] = ()
    """(class index, box) of annotated objects; a box is left, top, right, bottom in pixels."""
    label_maps: dict[str, LabelMap]
    """Label map by column title: 0 background, class c as c + 1, ignored pixels as `label_format` says."""


def save_overview(
    rows: Sequence[OverviewRow], class_names: Sequence[str], path: Path, *, cell_inches: float = 1.35
) -> None:
    """Write ``rows`` as PNG: image, CAMs, point prompts and label maps, with a legend of classes.

    Args:
        cell_inches: width of one picture in inches, at 150 pixels per inch.
    """
    save_figure(_draw(rows, class_names, cell_inches), path)


def render_overview(rows: Sequence[OverviewRow], class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Draw the picture of `save_overview` as pixels (H, W, 3) uint8 RGB."""
    figure = _draw(rows, class_names)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(rows: Sequence[OverviewRow], class_names: Sequence[str], cell_inches: float = 1.35) -> Figure:
    # A column is drawn if any row has it, and stays empty in the others.
    cams = list(dict.fromkeys(title for row in rows for title in row.cams))
    maps = list(dict.fromkeys(title for row in rows for title in row.label_maps))
    boxes, points = any(row.boxes for row in rows), any(row.points or row.beside for row in rows)
    prompts = ["prompts" if boxes else "point prompts"] if boxes or points else []
    titles = ["image", *cams, *prompts, *maps]
    present = sorted({c for row in rows for m in row.label_maps.values() for c in classes_in(m)})[:12]
    width = cell_inches * len(titles)
    per_line = max(1, min(6, len(present), int(width / _LEGEND_INCHES)))
    legend = _LINE_INCHES * max(1, math.ceil(len(present) / per_line))
    heights = [min(max(row.image.shape[0] / row.image.shape[1], 0.4), 1.5) for row in rows]
    figure = Figure(figsize=(width, cell_inches * sum(heights) + 0.55 + legend), dpi=150)
    axes = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
    for row, row_axes in zip(rows, axes):
        cells = iter(row_axes)
        next(cells).imshow(row.image)
        for title in cams:
            cell = next(cells)
            if title in row.cams:
                cell.imshow(overlay_heat(row.image, row.cams[title]))
        if prompts:
            _draw_prompts(next(cells), row)
        for title in maps:
            cell = next(cells)
            if title in row.label_maps:
                cell.imshow(paint_labels(row.image, row.label_maps[title]))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=8)
    handles = [Patch(color=_rgb(c), label=_plain(class_names[c])) for c in present]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=per_line, fontsize=8, frameon=False)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.005,
        right=0.995,
        top=1 - 0.25 / height,
        bottom=(0.22 + legend) / height,
        wspace=0.03,
        hspace=0.03,
    )
    return figure


def _draw_prompts(cell: Axes, row: OverviewRow) -> None:
    cell.imshow(_fade(row.image))
    for class_index, (left, top, right, bottom) in row.boxes:
        corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
        cell.add_patch(Rectangle(corner, *size, fill=False, ec=_rgb(class_index), lw=1.5))
    for class_index, x, y in row.points:
        cell.plot(x - 0.5, y - 0.5, "o", ms=6, mfc=_rgb(class_index), mec="white", mew=1.2)
    for class_index, x, y in row.beside:
        cell.plot(x - 0.5, y - 0.5, "o", ms=6, mfc="none", mec=_rgb(class_index), mew=1.5)


def classes_in(label_map: LabelMap) -> set[int]:
    """Indices of the classes in a label map (H, W)."""
    return {int(v) - 1 for v in np.unique(label_map) if v not in (0, ignore_label(label_map))}


def class_colour(class_index: int) -> NDArray[np.uint8]:
    """RGB colour (3,) of a class."""
    return COLOURS[1 + class_index % (len(COLOURS) - 1)]


def paint_labels(
    image: NDArray[np.uint8], label_map: LabelMap, palette: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Paint a label map (H, W) over the faded image (H, W, 3): classes in colour, ignored pixels in white.

    Args:
        palette: RGB colours (K, 3) of the labels, background included. None: `class_colour`.
    """
    painted = _fade(image)
    for label in np.unique(label_map):
        if label:
            if label == ignore_label(label_map):
                colour = np.array([255, 255, 255])
            else:
                colour = palette[label] if palette is not None else class_colour(int(label) - 1)
            painted[label_map == label] = 0.35 * painted[label_map == label] + 0.65 * colour
    return painted


def _rgb(class_index: int) -> tuple[float, float, float]:
    """RGB colour of a class in [0, 1], for matplotlib."""
    red, green, blue = (class_colour(class_index) / 255).tolist()
    return red, green, blue


def _plain(class_name: str) -> str:
    """Class name for the legend, escaped since matplotlib reads formulas between dollar signs."""
    return class_name.replace("_", " ").replace("$", r"\$")


def _fade(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = image.mean(axis=-1, keepdims=True)
    return (0.55 * grey + 0.2 * image).astype(np.uint8)


def overlay_heat(image: NDArray[np.uint8], cam: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blend the image (H, W, 3) with a heat map of a CAM (H, W) in [0, 1]; returns (H, W, 3)."""
    heat = colormaps["inferno"](np.clip(cam, 0, 1))[..., :3] * 255
    return (0.35 * image + 0.65 * heat).astype(np.uint8)
