"""Objects that a source annotates in its images: their boxes and points, checked against the image's size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_wsss.data.coco.masks import fill_runs, read_polygons, read_rle
from ray_wsss.data.coco.values import Box

BOX_CLIPPED = "box clipped at the image's border"
BOX_OUTSIDE = "box wholly outside its image"
POINT_LEFT_OUT = "point left out"
NO_PROMPT = "object without a point on it"
_OVERSHOOT_PX = 1.0
"""Reach of a box beyond its image that needs no remark; tools round, and count from 0 or from 1."""

BoxXyxy = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedObject:
    """An object with a box, with points, or with both. Coordinates are pixels of the upright image, as
    segment_anything's `SamPredictor` takes them: x before y."""

    class_index: int
    box_xyxy: BoxXyxy | None = None
    points_xy: tuple[tuple[float, float], ...] = ()
    point_labels: tuple[int, ...] = ()
    """For each point 1, on the object, or 0, beside it."""
    iscrowd: bool = False
    """True for a region of many objects, which nobody has told apart. It prompts nothing."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "AnnotatedObject":
        """An object as `data.schema.OBJECT` stores it."""
        box = row["box_xyxy"]
        return cls(
            class_index=row["class_index"],
            box_xyxy=None if box is None else (box[0], box[1], box[2], box[3]),
            points_xy=tuple((x, y) for x, y in row["points_xy"] or ()),
            point_labels=tuple(row["point_labels"] or ()),
            iscrowd=bool(row["iscrowd"]),
        )


def read_objects(rows: Sequence[Mapping[str, Any]] | None) -> tuple[AnnotatedObject, ...] | None:
    """Objects of an image from the column ``objects`` of a data set; None if its source lists none."""
    return None if rows is None else tuple(map(AnnotatedObject.from_row, rows))


def find_objects(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int, remarks: list[tuple[str, str]]
) -> list[AnnotatedObject]:
    """Objects of an image that have a box or a point on them, from annotations of `data.schema.SourceRow`.

    A box is clipped at the image's border. An object without a box gets that of its outline, unless it has
    points.

    Args:
        annotations: their ``segmentation`` is decoded: polygons or RLE in pixels.
        remarks: receives (remark, detail) for what lies outside the image or can't prompt anything.
    """
    found: list[AnnotatedObject] = []
    for annotation in annotations:
        name = f"annotation {annotation.get('id')}"
        given = annotation.get("points") or ()
        points = _points_inside(given, name, (height, width), remarks)
        box = _box_of(annotation, name, (height, width), remarks)
        if box is None and not any(positive for *_, positive in points):
            if points:
                remarks.append((NO_PROMPT, f"{name}: it has {len(points)} points, all of them beside it"))
            continue
        found.append(
            AnnotatedObject(
                class_index=annotation["class_index"],
                box_xyxy=box,
                points_xy=tuple((x, y) for x, y, _ in points),
                point_labels=tuple(positive for *_, positive in points),
                iscrowd=bool(annotation.get("iscrowd")),
            )
        )
    return found


def _points_inside(
    points: Sequence[Sequence[float]], name: str, image_hw: tuple[int, int], remarks: list[tuple[str, str]]
) -> list[tuple[float, float, int]]:
    height, width = image_hw
    inside: list[tuple[float, float, int]] = []
    for x, y, positive in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            remarks.append((POINT_LEFT_OUT, f"{name}: x {x:g}, y {y:g}; expected finite pixels"))
        elif not (0 <= x <= width and 0 <= y <= height):
            where = f"x {x:g}, y {y:g} in an image of {width}x{height} pixels"
            remarks.append((POINT_LEFT_OUT, f"{name}: {where}"))
        else:
            inside.append((float(x), float(y), int(positive)))
    return inside


def _box_of(
    annotation: Mapping[str, Any], name: str, image_hw: tuple[int, int], remarks: list[tuple[str, str]]
) -> BoxXyxy | None:
    bbox: Box | None = annotation.get("bbox")
    if bbox is not None:
        told: list[tuple[str, str]] = []
        box = _clip(_corners(bbox), name, image_hw, told)
        # Of YOLO's polygons, whose boxes are made of them, the reader has remarked on the clipping.
        remarks += [found for found in told if found[0] != BOX_CLIPPED or "fractions" not in annotation]
        return box
    outline = None if annotation.get("points") else _outline_box(annotation.get("segmentation"), image_hw)
    return _clip(outline, name, image_hw, []) if outline is not None else None


def _corners(bbox: Box) -> BoxXyxy:
    left, top, width, height = bbox
    return left, top, left + width, top + height


def _clip(
    box: BoxXyxy, name: str, image_hw: tuple[int, int], remarks: list[tuple[str, str]]
) -> BoxXyxy | None:
    """The part of a box that lies in the image; None if there is none."""
    height, width = image_hw
    left, top, right, bottom = box
    clipped = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    reach = f"x {left:g} to {right:g}, y {top:g} to {bottom:g} in an image of {width}x{height} pixels"
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        remarks.append((BOX_OUTSIDE, f"{name}: {reach}"))
        return None
    if max(abs(new - old) for new, old in zip(clipped, box)) > _OVERSHOOT_PX:
        remarks.append((BOX_CLIPPED, f"{name}: {reach}"))
    return clipped


def _outline_box(segmentation: Any, image_hw: tuple[int, int]) -> BoxXyxy | None:
    """The box around polygons or an RLE; None if nothing of them can be used, of which `rasterise` tells."""
    if isinstance(segmentation, list):
        polygons, _ = read_polygons(segmentation)
        if not polygons:
            return None
        x, y = np.concatenate(polygons).T
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())
    if not isinstance(segmentation, dict):
        return None
    try:
        inside = fill_runs(read_rle(segmentation, *image_hw), *image_hw)
    except ValueError:
        return None
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
