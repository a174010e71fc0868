"""Objects of a table: its lines ``path,label,x,y[,0|1]`` and ``path,label,x1,y1,x2,y2``, by image."""

import math
from collections.abc import Mapping
from typing import Any

from ray_wsss.data.coco.prompts import BOX_LEFT_OUT
from ray_wsss.data.sources.named_objects import named_object, with_indices
from ray_wsss.data.tables.lines import LabelLine


class PlacedLabels:
    """Gathers the boxes and points of the lines of a table.

    A box is an object, and so is a point whose line doesn't say on which side it is. Points that are said to
    be on the object (1) or beside it (0) are one object for each label of an image.
    """

    def __init__(self) -> None:
        self._objects: dict[str, list[dict[str, Any]]] = {}
        self._sets: dict[tuple[str, str], dict[str, Any]] = {}
        self._remarks: dict[str, list[tuple[str, str]]] = {}

    def add(self, line: LabelLine) -> None:
        """Add a line; it does nothing for one without a place."""
        if not line.place:
            return
        (label,) = line.labels
        if len(line.place) == 4:
            self._add_box(line, label)
        elif line.positive is None:
            self._new_object(line, label)["points"] = [(*line.place, 1)]
        else:
            key = line.path, label
            if key not in self._sets:
                self._sets[key] = self._new_object(line, label)
                self._sets[key]["points"] = []
            self._sets[key]["points"].append((*line.place, int(line.positive)))

    def annotations_of(self, path: str, class_of: Mapping[str, int]) -> list[dict[str, Any]] | None:
        """Annotations of an image, as `data.schema.SourceRow` has them; None if no line gives a place."""
        found = self._objects.get(path)
        return found and with_indices(found, class_of)

    def remarks_of(self, path: str) -> tuple[tuple[str, str], ...]:
        """(remark, detail) for each box of an image that isn't usable."""
        return tuple(self._remarks.get(path, ()))

    def _add_box(self, line: LabelLine, label: str) -> None:
        left, top, right, bottom = line.place
        if all(map(math.isfinite, line.place)) and left < right and top < bottom:
            self._new_object(line, label)["bbox"] = (left, top, right - left, bottom - top)
            return
        told = (
            f"x {left:g} to {right:g}, y {top:g} to {bottom:g}; expected finite pixels, x1 < x2 and y1 < y2"
        )
        self._remarks.setdefault(line.path, []).append((BOX_LEFT_OUT, f"line {line.number}: {told}"))

    def _new_object(self, line: LabelLine, label: str) -> dict[str, Any]:
        new = named_object(f"of line {line.number}", label)
        self._objects.setdefault(line.path, []).append(new)
        return new
