"""Boxes and keypoints of COCO annotations, which can prompt SAM."""

from typing import Any

from ray_wsss.data.coco.values import Box, as_box, as_whole

BOX_LEFT_OUT = "box left out"
KEYPOINTS_LEFT_OUT = "keypoints left out"
_VISIBLE = 2
"""COCO's flag of a keypoint that can be seen; 1 is a hidden one, 0 none."""


def read_box(value: Any, name: str, remarks: list[tuple[str, str]]) -> Box | None:
    """A ``bbox`` of an annotation, or None if it has none or an unusable one.

    Args:
        name: what the remark calls the annotation, such as "annotation 7".
        remarks: receives (remark, detail) for a box that isn't four finite numbers with an area.
    """
    box = as_box(value)
    if box is None and value is not None and value != []:
        told = f"{name}: {value!r:.60}; expected x, y, width and height, finite and with an area"
        remarks.append((BOX_LEFT_OUT, told))
    return box


def read_keypoints(value: Any, name: str, remarks: list[tuple[str, str]]) -> list[tuple[float, float, int]]:
    """Visible ``keypoints`` of an annotation, as points on the object: (x, y, 1).

    Args:
        name, remarks: as for `read_box`.
    """
    if value is None or value == []:
        return []
    usable = isinstance(value, list) and len(value) % 3 == 0
    if not usable or not all(isinstance(number, int | float) for number in value):
        remarks.append((KEYPOINTS_LEFT_OUT, f"{name}: {value!r:.60}; expected x, y and visibility, repeated"))
        return []
    triples = zip(value[::3], value[1::3], value[2::3])
    return [(float(x), float(y), 1) for x, y, seen in triples if as_whole(seen) == _VISIBLE]
