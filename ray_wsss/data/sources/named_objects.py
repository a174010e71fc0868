"""Annotated objects of sources that name classes, until all names are known and sorted."""

from collections.abc import Iterable, Mapping
from typing import Any


def named_object(name: str, class_name: str) -> dict[str, Any]:
    """An object of which nobody knows where it is; ``name`` is its id in messages."""
    return {"id": name, "class_name": class_name, "iscrowd": False, "segmentation": None, "bbox": None}


def with_indices(objects: Iterable[Mapping[str, Any]], class_of: Mapping[str, int]) -> list[dict[str, Any]]:
    """Annotations as `data.schema.SourceRow` has them: with ``class_index`` in place of ``class_name``."""
    return [
        {name: value for name, value in each.items() if name != "class_name"}
        | {"class_index": class_of[each["class_name"]]}
        for each in objects
    ]
