"""COCO instance annotations: labels, and label maps rasterised from polygons and RLE.

A crowd region adds its class to the image's labels, and its pixels are ignored in the mask. Classes are the
file's categories, sorted by category id.
"""

import json
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.data.source import Source
from ray_wsss.errors import UserError


class Rle(TypedDict):
    """A mask as COCO's compressed RLE, ready for JSON."""

    size: list[int]
    """Height and width in pixels."""
    counts: str
    """Run lengths, column by column, in COCO's compressed text form."""


def read_coco(images: Path, annotations: Path) -> Source:
    """Read the class names and one row per image from the JSON file ``annotations``.

    An annotation with an unknown category turns its image into an error row; an annotation of an image that
    the file doesn't list adds an error row. An image without annotations has none of the classes. An image
    gets labels but no mask if the whole file, or any of the image's annotations, has no segmentation (labels
    or boxes only).

    Args:
        images: folder that the file names in ``annotations`` are relative to.

    Raises:
        UserError: a file is missing or malformed, or an image or category id is repeated.
    """
    if not images.is_dir():
        raise UserError(f"{images} is not a folder; expected the folder of the COCO images")
    content = _load_json(annotations)
    categories = _by_id(content, "categories", "name", annotations)
    # Sorted by the ids themselves and not as text, which would put 10 before 9.
    ordered = sorted(categories.values(), key=lambda c: (isinstance(c["id"], str), c["id"]))
    class_names = [str(category["name"]) for category in ordered]
    check_class_names(class_names, annotations)
    class_of = {str(category["id"]): index for index, category in enumerate(ordered)}

    entries = _by_id(content, "images", "file_name", annotations)
    annotations_of: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in entries}
    strangers: dict[str, str] = {}
    for annotation in _objects(content, "annotations", annotations):
        image_id = str(annotation.get("image_id"))
        if image_id in annotations_of:
            annotations_of[image_id].append(annotation)
        else:
            strangers[image_id] = f"annotation {annotation.get('id')} is of an image the file doesn't list"
    any_mask = any(a.get("segmentation") for members in annotations_of.values() for a in members)
    rows = [
        _row(images, entries[key], members, class_of, any_mask) for key, members in annotations_of.items()
    ]
    rows += [SourceRow(image_id=i, path="", error=e) for i, e in strangers.items()]
    return Source(kind="coco", class_names=class_names, rows=rows)


def rasterise(annotations: list[dict[str, Any]], height: int, width: int) -> NDArray[np.uint8]:
    """Paint annotations (``segmentation``, ``iscrowd``, ``class_index``) into an (H, W) uint8 label map.

    0 is background and class c is c + 1. Where instances overlap, the one with fewer pixels is on top (a cup
    on a table); of equally large ones, the later. Crowd regions are 255 and on top of everything, because
    their outlines are too coarse to tell what is inside.

    Raises:
        ValueError: a segmentation is malformed or of another size; the message names the annotation.
    """
    label_map = np.zeros((height, width), np.uint8)
    painted = []
    for annotation in annotations:
        try:
            runs = _runs(annotation["segmentation"], height, width)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"annotation {annotation.get('id')}: {error}") from error
        value = 255 if annotation.get("iscrowd") else annotation["class_index"] + 1
        painted.append((value == 255, -sum(runs[1::2]), value, runs))
    for _, _, value, runs in sorted(painted, key=lambda p: p[:2]):
        label_map[_fill(runs, height, width)] = value
    return label_map


def _row(
    root: Path,
    entry: dict[str, Any],
    annotations: list[dict[str, Any]],
    class_of: dict[str, int],
    any_mask: bool,
) -> SourceRow:
    image_id, file_name = str(entry["id"]), str(entry["file_name"])
    path, error = locate(root, file_name)
    unknown = next((a for a in annotations if str(a.get("category_id")) not in class_of), None)
    if unknown is not None:
        error = f"annotation {unknown.get('id')}: unknown category_id {unknown.get('category_id')}"
    stated_hw = None
    if "height" in entry or "width" in entry:
        height, width = entry.get("height"), entry.get("width")
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            stated_hw = (height, width)
        else:
            error = error or f"states a height of {height} and a width of {width}; expected whole pixels"
    if error is not None:
        return SourceRow(image_id=image_id, path=file_name, error=error)
    members = [
        {
            "id": a.get("id"),
            "class_index": class_of[str(a["category_id"])],
            "iscrowd": bool(a.get("iscrowd")),
            "segmentation": a.get("segmentation"),
        }
        for a in annotations
    ]
    return SourceRow(
        image_id=image_id,
        path=path,
        image_labels=tuple(sorted({m["class_index"] for m in members})),
        stated_hw=stated_hw,
        annotations=members if any_mask and all(m["segmentation"] for m in members) else None,
    )


def encode_rle(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Rle:
    """Encode a mask (H, W) of 0 and 1 as COCO's compressed RLE."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    # pycocotools' stubs declare str, but its C code returns bytes.
    return {"size": rle["size"], "counts": cast(bytes, rle["counts"]).decode("ascii")}


def decode_rle(counts: str, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode the counts of COCO's compressed RLE to a mask (H, W). Raises ValueError if malformed."""
    runs = _checked_runs({"size": list(image_hw), "counts": counts}, *image_hw)
    return _fill(runs, *image_hw)


def _fill(runs: list[int], height: int, width: int) -> NDArray[np.bool_]:
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def _runs(segmentation: Any, height: int, width: int) -> list[int]:
    """Run lengths of polygons [[x, y, ...], ...] or RLE {size, counts}, column by column, background first.

    RLE is not decoded by pycocotools, because its C code doesn't check its input (a short RLE exposes
    uninitialised memory) and its ``decode`` warns under NumPy 2.
    """
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"its segmentation is {segmentation!r}; expected polygons or RLE")
    for polygon in segmentation:
        _check_polygon(polygon)
    rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return _run_lengths(rle["counts"])


def _check_polygon(polygon: Any) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        size = f"{len(polygon)} numbers" if isinstance(polygon, list) else f"{polygon!r}"
        raise ValueError(f"a polygon of {size}; expected x, y pairs, at least 6 numbers")
    coordinates = np.asarray(polygon, dtype=np.float64)
    # pycocotools' C code casts to int, which overflows for far-off and non-finite coordinates.
    if not (np.abs(coordinates) < 1e6).all():
        raise ValueError("a polygon with coordinates that are not finite pixels")


def _checked_runs(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"RLE of size {segmentation['size']}; expected [{height}, {width}]")
    counts = segmentation["counts"]
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    if any(not isinstance(run, int) or run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"RLE counts that don't add up to {height} x {width} pixels")
    return runs


def _run_lengths(text: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed counts.

    A character holds 5 bits of a signed number, lowest bits first, and a bit that says whether more follow;
    it is offset by '0'. From the fourth on, a number is the difference from the run two before.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii") if isinstance(text, str) else text:
        group = code - 48
        if not 0 <= group < 64:
            raise ValueError("RLE counts with a character outside COCO's alphabet")
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            value -= (1 << shift) if group & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("RLE counts that end too early")
    return counts


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror or error}); expected a COCO instances file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); expected a COCO instances file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; expected a COCO object with 'images'")
    return content


def _objects(content: dict[str, Any], field: str, path: Path) -> list[dict[str, Any]]:
    items = content.get(field)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{path}: '{field}' is missing or not a list of objects; expected a COCO file")
    return items


def _by_id(content: dict[str, Any], field: str, needed: str, path: Path) -> dict[str, dict[str, Any]]:
    """Objects of a field, by id as text; UserError for a repeated id, or a missing id or ``needed`` key."""
    found: dict[str, dict[str, Any]] = {}
    for index, item in enumerate(_objects(content, field, path)):
        key = item.get("id")
        if not isinstance(key, int | str) or isinstance(key, bool) or not isinstance(item.get(needed), str):
            raise UserError(f"{path}: {field}[{index}] has no usable 'id' or '{needed}'")
        if str(key) in found:
            raise UserError(f"{path}: {field} has id {key} twice; expected unique ids")
        found[str(key)] = item
    return found
