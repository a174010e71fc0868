"""Key points of Label Studio: clicks on objects or beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_wsss.data.coco.values import as_id, as_size
from ray_wsss.data.label_studio.shapes import pair
from ray_wsss.data.objects import POINT_LEFT_OUT
from ray_wsss.data.sources.named_objects import named_object


def is_keypoint(result: Mapping[str, Any]) -> bool:
    """Tell whether a region is a key point: by its type, or one that has a place and no height."""
    value, kind = result.get("value"), result.get("type")
    if kind != "labels" or not isinstance(value, dict):
        return kind == "keypointlabels"
    return {"x", "y"} <= value.keys() and not {"height", "radiusX"} & value.keys()


class KeyPoints:
    """Gathers the key points of an annotation, until all objects are known.

    A point belongs to the object that its ``parentID`` names. Without one, it is an object of its own; but
    where a class has points beside it (``is_positive`` is false), all of its points are one object.
    """

    def __init__(self) -> None:
        self._found: list[tuple[str, str, dict[str, Any]]] = []

    def add(self, name: str, classes: Sequence[str], result: dict[str, Any]) -> None:
        """Add a result. Raises ValueError with the end of a sentence on what is wrong."""
        if len(set(classes)) > 1:
            raise ValueError(f"is a point of {', '.join(classes)}; expected one class")
        self._found.append((name, classes[0], result))

    def join(self, objects: list[dict[str, Any]], remarks: list[tuple[str, str]]) -> None:
        """Add the points to the objects they belong to, or as objects of their own.

        Args:
            remarks: receives (remark, detail) for a point that has no usable place.
        """
        known = {each["id"]: each for each in objects}
        with_negatives = {c for _, c, result in self._found if not _is_positive(result)}
        for name, class_name, result in self._found:
            try:
                point = _point(result)
            except ValueError as error:
                remarks.append((POINT_LEFT_OUT, f"annotation {name}: {error}"))
                objects.append(named_object(name, class_name))
                continue
            key = as_id(result.get("parentID")) or ""
            if key not in known or known[key]["class_name"] != class_name:
                key = f"points of {class_name}" if class_name in with_negatives else name
            if key not in known:
                known[key] = named_object(key, class_name)
                objects.append(known[key])
            known[key].setdefault("points", []).append(point)


def _is_positive(result: Mapping[str, Any]) -> bool:
    return result.get("is_positive") is not False


def _point(result: Mapping[str, Any]) -> tuple[float, float, int]:
    if result.get("image_rotation") not in (None, 0):
        raise ValueError(f"on an image turned by {result['image_rotation']!r:.40} degrees")
    size_hw = as_size(result.get("original_height"), result.get("original_width"))
    if size_hw is None:
        raise ValueError("no 'original_width' and 'original_height' in pixels, which percentages need")
    x, y = (pair(result["value"], "x", "y") * np.array(size_hw[::-1]) / 100).tolist()
    return x, y, int(_is_positive(result))
