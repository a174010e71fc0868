"""COCO annotations painted into one label map per image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.coco.masks import fill_runs, polygon_runs, read_polygons, read_rle
from ray_wsss.data.coco.values import Box
from ray_wsss.label_format import MAX_BYTE_CLASSES, LabelMap, label_format

UNUSABLE = "outline left out"
CLIPPED = "outline clipped at the image's border"
OUTSIDE = "object wholly outside its image"
NO_MASK = "no mask, since nobody knows where an object is"


def rasterise(
    annotations: Sequence[dict[str, Any]],
    height: int,
    width: int,
    remarks: list[tuple[str, str]] | None = None,
    num_classes: int = MAX_BYTE_CLASSES,
) -> LabelMap | None:
    """Paint annotations (``segmentation``, ``bbox``, ``iscrowd``, ``class_index``) into a label map.

    In the map (H, W), 0 is background and class c is c + 1. Where instances overlap, the one with fewer
    pixels is on top (a cup on a table); of equally large ones, the later. Crowd regions are ignored and on
    top of everything, because their outlines are too coarse to tell what is inside. An object without a
    usable outline is ignored in its box, below everything, because nobody knows which of these pixels are the
    object's. Points alone are taken to lie on the outlines of their class, if there are any.

    Args:
        remarks: receives (remark, detail) for what can't be painted or lies outside the image.
        num_classes: number of classes, which decides the type of the map and its label of ignored pixels
            (`label_format`).

    Returns:
        None if no object has a usable outline, or one has neither outline nor box.
    """
    found = remarks if remarks is not None else []
    if annotations and all(annotation.get("segmentation") is None for annotation in annotations):
        return None
    annotations = _without_pointed_at(annotations)
    for annotation in annotations:
        if annotation.get("segmentation") is None and annotation.get("bbox") is None:
            found.append((NO_MASK, f"annotation {annotation.get('id')} has no outline and no box"))
            return None
    outlines = [_outline_runs(annotation, height, width, found) for annotation in annotations]
    if annotations and all(runs is None for runs in outlines):
        return None
    form = label_format(num_classes)
    label_map = np.zeros((height, width), form.dtype)
    painted = []
    for annotation, runs in zip(annotations, outlines):
        if runs is not None:
            crowd = bool(annotation.get("iscrowd"))
            value = form.ignore if crowd else annotation["class_index"] + 1
            painted.append((crowd, -sum(runs[1::2]), value, runs))
        elif annotation.get("bbox") is not None:
            label_map[_box_slices(annotation["bbox"])] = form.ignore
    for _, _, value, runs in sorted(painted, key=lambda p: p[:2]):
        label_map[fill_runs(runs, height, width)] = value
    return label_map


def _without_pointed_at(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations without those that are points alone, on a class of which there are outlines."""
    outlined = {a["class_index"] for a in annotations if a.get("segmentation") is not None}
    return [
        a
        for a in annotations
        if not a.get("points")
        or a.get("segmentation") is not None
        or a.get("bbox") is not None
        or a["class_index"] not in outlined
    ]


def _outline_runs(
    annotation: dict[str, Any], height: int, width: int, remarks: list[tuple[str, str]]
) -> list[int] | None:
    """Run lengths of an annotation's outline, column by column; None if nothing of it can be used."""
    segmentation, name = annotation.get("segmentation"), f"annotation {annotation.get('id')}"
    polygons: list[NDArray[np.float64]] = []
    if isinstance(segmentation, dict):
        try:
            return read_rle(segmentation, height, width)
        except ValueError as error:
            problems = [str(error)]
    elif isinstance(segmentation, list):
        polygons, problems = read_polygons(segmentation)
    elif segmentation is None:
        problems = ["a box alone, which is ignored in the mask"]
    else:
        problems = [f"a segmentation of {segmentation!r:.40}; expected polygons or RLE"]
    remarks += [(UNUSABLE, f"{name}: {problem}") for problem in problems]
    if not polygons:
        return None
    runs = polygon_runs(polygons, height, width)
    _remark_on_clipping(np.concatenate(polygons), sum(runs[1::2]), (height, width), name, remarks)
    return runs


def _remark_on_clipping(
    points_xy: NDArray[np.float64],
    pixels: int,
    image_hw: tuple[int, int],
    name: str,
    remarks: list[tuple[str, str]],
) -> None:
    height, width = image_hw
    low, high = points_xy.min(axis=0), points_xy.max(axis=0)
    if (low >= 0).all() and (high <= (width, height)).all():
        return
    reach = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
    remarks.append(
        (CLIPPED if pixels else OUTSIDE, f"{name}: {reach} in an image of {width}x{height} pixels")
    )


def _box_slices(bbox: Box) -> tuple[slice, slice]:
    """Rows and columns of every pixel that a box touches."""
    left, top, width, height = bbox
    rows = slice(max(0, math.floor(top)), max(0, math.ceil(top + height)))
    return rows, slice(max(0, math.floor(left)), max(0, math.ceil(left + width)))
