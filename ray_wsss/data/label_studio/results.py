"""Results of an annotation of Label Studio: classes of the image, and objects with outlines or boxes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_wsss.data.coco.rasterise import UNUSABLE
from ray_wsss.data.coco.values import as_id, as_size
from ray_wsss.data.label_studio.brush import brush_text
from ray_wsss.data.label_studio.keypoints import KeyPoints, is_keypoint
from ray_wsss.data.label_studio.shapes import box, ellipse, polygon
from ray_wsss.data.sources.named_objects import named_object
from ray_wsss.storage import printable

LEFT_OUT = "result left out"
SEVERAL = "object of several classes ignored in the mask"
REGIONS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "keypointlabels", "labels")
"""Types of results that give an object its classes, in a field of the same name."""
_SHAPES = ("brush", "polygon", "rectangle", "ellipse", "keypoint")
"""Types of results that repeat the outline of a region whose classes are in a result of the same id."""


@dataclass(slots=True)
class Results:
    """Content of the results of an annotation: classes and objects of an image."""

    classes: set[str] = field(default_factory=set)
    objects: list[dict[str, Any]] = field(default_factory=list)
    """As `data.schema.SourceRow` has them, but with ``class_name`` in place of ``class_index``."""
    remarks: list[tuple[str, str]] = field(default_factory=list)
    sizes_hw: set[tuple[int, int]] = field(default_factory=set)
    """Sizes (height, width) in pixels that the results state for the image."""
    known: bool = True
    """False if there are results, but none that tells a class; the classes are then unknown."""


def read_results(results: Sequence[Any], controls: Collection[str] = ()) -> Results:
    """Read the results of an annotation or a prediction.

    A class of ``choices`` of which there is no object becomes an object that is nowhere, if there are others:
    the mask must not say that it isn't in the image. A result that can't be read costs itself alone.

    Args:
        controls: names of the controls of the labelling interface that are read; empty: all.
    """
    found = Results()
    chosen: set[str] = set()
    read = [r for r in results if not controls or (isinstance(r, dict) and r.get("from_name") in controls)]
    points = KeyPoints()
    regions = {as_id(r.get("id")) for r in read if isinstance(r, dict) and r.get("type") in REGIONS} - {None}
    for index, result in enumerate(read):
        name = f"[{index}]"
        try:
            if not isinstance(result, dict):
                raise ValueError(f"is {result!r:.40}; expected an object")
            name = as_id(result.get("id")) or name
            kind, of_region = result.get("type"), name in regions
            if kind in REGIONS and is_keypoint(result):
                points.add(name, _names(result), result)
                found.classes.update(_names(result))
            elif kind in REGIONS:
                _add_object(name, _names(result), result, found)
            elif kind == "choices" and not of_region:
                chosen.update(_names(result))
            elif not (kind in _SHAPES and of_region):
                raise ValueError(f"is of type {kind!r:.40}{' of a region' if of_region else ''}")
        except ValueError as error:
            found.remarks.append((LEFT_OUT, f"result {name} {error}"))
    points.join(found.objects, found.remarks)
    if found.objects:
        found.objects += [named_object(f"'{n}' of choices", n) for n in sorted(chosen - found.classes)]
    found.classes |= chosen
    found.known = bool(found.classes) or not read
    return found


def _names(result: dict[str, Any]) -> list[str]:
    """Names of the classes of a result. Raises ValueError with the end of a sentence on what is wrong."""
    kind, value = result["type"], result.get("value")
    names = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f"has the {kind} {names!r:.40}; expected a list of names")
    return [printable(name) for name in names]


def _add_object(name: str, classes: Sequence[str], result: dict[str, Any], found: Results) -> None:
    found.classes.update(classes)
    size_hw = as_size(result.get("original_height"), result.get("original_width"))
    if size_hw is not None:
        found.sizes_hw.add(size_hw)
    several = len(set(classes)) > 1
    if several:
        found.remarks.append((SEVERAL, f"annotation {name}: {', '.join(classes)}"))
    try:
        place = _place(result, size_hw)
    except ValueError as error:
        found.remarks.append((UNUSABLE, f"annotation {name}: {error}"))
        place = {}
    # Nobody knows which of the pixels are of which class, so that they are ignored, as those of a crowd.
    found.objects.append(named_object(name, classes[0]) | place | {"iscrowd": several})


def _place(result: dict[str, Any], size_hw: tuple[int, int] | None) -> dict[str, Any]:
    """Outline or box of a region, as annotations have it. Raises ValueError with what can't be used."""
    value = result["value"]
    if result.get("image_rotation") not in (None, 0):
        raise ValueError(f"drawn on an image turned by {result['image_rotation']!r:.40} degrees")
    if "rle" in value:
        if value.get("format", "rle") != "rle" or not isinstance(value["rle"], list):
            raise ValueError(f"a brush region of format {value.get('format')!r:.40}; expected 'rle'")
        return {"brush": brush_text(value["rle"])}
    if size_hw is None:
        raise ValueError("no 'original_width' and 'original_height' in pixels, which percentages need")
    scale_xy = np.array(size_hw[::-1]) / 100
    if "points" in value:
        return {"segmentation": [polygon(value["points"], scale_xy)]}
    if "radiusX" in value:
        return {"segmentation": [ellipse(value, scale_xy)]}
    return {"bbox": box(value, scale_xy)}
