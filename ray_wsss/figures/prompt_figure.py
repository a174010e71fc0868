"""The paper's Figure 1: SAM's masks for different kinds of prompts from the same CAM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ray_wsss.data.objects import AnnotatedObject
from ray_wsss.figures.overview import overlay_heat, paint_labels
from ray_wsss.figures.save import save_figure
from ray_wsss.ops.regions import box_around

TITLES = {
    "points": "points",
    "box": "one box over all peaks",
    "boxes": "a box for each peak",
    "mask": "CAM as mask",
    "annotated_points": "annotated points",
    "annotated_boxes": "annotated boxes",
}
"""Titles by kind of prompt. The last two are prompts of the data set's objects, if it has some."""
_PROMPT = "#36e2ff"


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptExample:
    """One class of one image: its CAM, the prompts, SAM's masks and the ground truth."""

    title: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    cam: NDArray[np.float32]
    """(H, W), in [0, 1]."""
    points_xy: NDArray[np.float32]
    """(P, 2) point prompts in pixels, x before y."""
    regions: NDArray[np.int32]
    """(H, W) number of the peak that a pixel belongs to, 0 for none, from `ops.regions.peak_regions`."""
    truth: NDArray[np.bool_]
    """(H, W) ground truth of the class."""
    objects: Sequence[AnnotatedObject] = ()
    """Annotated objects of the class."""
    masks: Mapping[str, NDArray[np.bool_]]
    """SAM's mask (H, W) by kind of prompt."""
    iou: Mapping[str, float]
    """IoU of each mask with the ground truth, in [0, 1], by kind of prompt."""


def save_prompt_figure(examples: Sequence[PromptExample], path: Path) -> None:
    """Write a PNG with two rows per example: the CAM with each prompt, and the mask from it below."""
    kinds = [kind for kind in TITLES if all(kind in example.masks for example in examples)]
    columns, rows = 1 + len(kinds), 2 * len(examples)
    sides = [example.image.shape[0] / example.image.shape[1] for example in examples]
    heights = [side for side in sides for _ in range(2)]
    figure = Figure(figsize=(1.9 * columns, sum(1.9 * side + 0.3 for side in heights)), dpi=130)
    cells = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for example, upper, lower in zip(examples, cells[::2], cells[1::2]):
        _show(upper[0], example.image, example.title)
        _show(lower[0], paint_labels(example.image, example.truth.astype(np.uint8)), "ground truth")
        for kind, asked, answered in zip(kinds, upper[1:], lower[1:]):
            _show(asked, overlay_heat(example.image, example.cam), TITLES[kind])
            _draw_prompt(asked, example, kind)
            mask = example.masks[kind].astype(np.uint8)
            _show(answered, paint_labels(example.image, mask), f"IoU {100 * example.iou[kind]:.0f} %")
    figure.tight_layout(pad=0.4)
    save_figure(figure, path)


def _show(cell: Axes, picture: NDArray[np.uint8], title: str) -> None:
    cell.imshow(picture)
    cell.set_title(title.replace("$", r"\$"), fontsize=8)
    cell.set_axis_off()


def _draw_prompt(cell: Axes, example: PromptExample, kind: str) -> None:
    regions = example.regions
    if kind == "points":
        xs, ys = example.points_xy.T
        cell.plot(xs - 0.5, ys - 0.5, "o", ms=5, mfc=_PROMPT, mec="black", mew=0.8)
    elif kind == "annotated_points":
        for each in example.objects:
            for (x, y), label in zip(each.points_xy, each.point_labels):
                cell.plot(x, y, "o", ms=5, mfc=_PROMPT if label else "none", mec="black", mew=0.8)
    elif kind == "annotated_boxes":
        for each in example.objects:
            if each.box_xyxy is not None:
                _draw_box(cell, each.box_xyxy)
    elif kind == "mask":
        cell.contour(regions > 0, levels=[0.5], colors=[_PROMPT], linewidths=1.5)
    else:
        numbers = range(1, regions.max() + 1)
        for region in [regions > 0] if kind == "box" else [regions == k for k in numbers]:
            _draw_box(cell, box_around(region))


def _draw_box(cell: Axes, box_xyxy: Sequence[float]) -> None:
    left, top, right, bottom = box_xyxy
    corner = (left - 0.5, top - 0.5)
    cell.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, ec=_PROMPT, lw=1.5))
