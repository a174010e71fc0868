"""COCO instance annotations as people's tools write them, with labels and objects of each image.

A crowd region adds its class to the image's labels, and its pixels are ignored in the mask. Classes are the
file's categories, sorted by category id.
"""

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ray_wsss.data.coco.prompts import read_box, read_keypoints
from ray_wsss.data.coco.values import as_id, as_size, as_whole, read_json
from ray_wsss.data.folder import is_hidden
from ray_wsss.data.image_files.formats import is_image_by_name
from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.data.source import UNLISTED, Source
from ray_wsss.errors import UserError
from ray_wsss.storage import find_files, is_remote, printable


def read_coco(images: Path, annotations: Path, unannotated: Literal["none", "unknown"] = "none") -> Source:
    """Read the class names and one row per image from the JSON file ``annotations``.

    An image gets labels but no mask if the whole file, or the image, has no segmentation (labels or boxes
    alone). A category that only groups others (Roboflow's root) is left out. A size that can't be one, such
    as VIA's -1, counts as not stated. Error rows are: an image without usable id or file name or whose id
    other images have, an image with an unknown category, and annotations of an image that isn't listed.

    Args:
        images: folder that the file names in ``annotations`` are relative to.
        unannotated: what an image without annotations has: none of the classes, or nobody knows.

    Raises:
        UserError: a file is missing or malformed, or a category id or name is repeated.
    """
    if not images.is_dir():
        raise UserError(f"{images} is not a folder; expected the folder of the COCO images")
    content = _load_json(annotations)
    listed = _objects(content, "annotations", annotations)
    names, remarks = _read_classes(content, listed, annotations)
    class_of = {key: index for index, key in enumerate(names)}
    entries, error_rows = _read_entries(_objects(content, "images", annotations))
    members, strangers = _by_image(listed, entries)
    any_mask = any(_outline(a) is not None for group in members.values() for a in group)
    unsized = sum(_states_nonsense(entry) for entry in entries.values())
    if unsized:
        remarks.append(f"{unsized} images state a size that isn't one, such as -1; the files tell it")
    rows = [
        _row(images, image_id, entry, members[image_id], class_of, unannotated, any_mask)
        for image_id, entry in entries.items()
    ]
    failed = {row.image_id for row in error_rows}
    error_rows += [SourceRow(image_id=i, path="", error=e) for i, e in strangers.items() if i not in failed]
    rows += error_rows
    unlisted = _count_unlisted(images, rows, annotations, remarks)
    passed_over = {UNLISTED: unlisted} if unlisted else {}
    return Source(
        kind="coco", class_names=list(names.values()), rows=rows, remarks=remarks, passed_over=passed_over
    )


def _read_classes(
    content: dict[str, Any], annotations: Sequence[dict[str, Any]], path: Path
) -> tuple[dict[str, str], list[str]]:
    """Names of the classes by category id, and a remark on each category that is left out."""
    categories = _categories(content, path)
    used = {as_id(annotation.get("category_id")) for annotation in annotations}
    roots = {key for key in _roots(categories) if key not in used}
    names = {key: printable(category["name"]) for key, category in categories.items()}
    remarks = [
        f"category '{names[key]}' is left out of the classes: no annotation is of it, and other categories "
        "name it as their supercategory"
        for key in names
        if key in roots
    ]
    names = {key: name for key, name in names.items() if key not in roots}
    check_class_names(list(names.values()), path)
    return names, remarks


def _count_unlisted(images: Path, rows: Sequence[SourceRow], annotations: Path, remarks: list[str]) -> int:
    """Number of files that are images by their names, and of which the annotations don't tell.

    A folder in a store isn't listed: that takes a request for every 1,000 files.
    """
    if is_remote(images):
        remarks.append(f"images in {images} that {annotations} doesn't list were not counted")
        return 0
    root = f"{images.absolute()}/"
    listed = {posixpath.normpath(row.path).removeprefix(root) for row in rows}
    return sum(
        is_image_by_name(name) is True and name not in listed and not is_hidden(name)
        for name in find_files(images)
    )


def _by_image(
    annotations: Sequence[dict[str, Any]], entries: Mapping[str, Any]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Annotations by image id, and what to say of ids that aren't in ``entries``.

    Annotations without an id are named by their index: ids serve messages alone, so they needn't be unique.
    """
    members: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in entries}
    strangers: dict[str, str] = {}
    for index, annotation in enumerate(annotations):
        name = annotation.get("id") if annotation.get("id") is not None else f"[{index}]"
        image_id = as_id(annotation.get("image_id"))
        if image_id is not None and image_id in members:
            members[image_id].append(annotation | {"id": name})
        else:
            reason = f"annotation {name} is of an image the file doesn't list"
            strangers.setdefault(image_id or f"{annotation.get('image_id')!r:.40}", reason)
    return members, strangers


def _row(
    root: Path,
    image_id: str,
    entry: dict[str, Any],
    annotations: Sequence[dict[str, Any]],
    class_of: Mapping[str, int],
    unannotated: str,
    any_mask: bool,
) -> SourceRow:
    path, error = locate(root, entry["file_name"])
    remarks: list[tuple[str, str]] = []
    objects = [_read_object(annotation, class_of, remarks) for annotation in annotations]
    strange = next((a for a, found in zip(annotations, objects) if found["class_index"] is None), None)
    if strange is not None:
        error = f"annotation {strange['id']}: unknown category_id {strange.get('category_id')!r:.40}"
    if error is not None:
        return SourceRow(image_id=image_id, path=entry["file_name"], error=error)
    unknown = not objects and unannotated == "unknown"
    return SourceRow(
        image_id=image_id,
        path=path,
        image_labels=None if unknown else tuple(sorted({found["class_index"] for found in objects})),
        stated_hw=_stated_hw(entry),
        annotations=objects if objects or (any_mask and not unknown) else None,
        remarks=tuple(remarks),
    )


def _read_object(
    annotation: dict[str, Any], class_of: Mapping[str, int], remarks: list[tuple[str, str]]
) -> dict[str, Any]:
    """An annotation as `data.schema.SourceRow` has it; ``class_index`` is None for an unknown category."""
    name = f"annotation {annotation['id']}"
    points = read_keypoints(annotation.get("keypoints"), name, remarks)
    return {
        "id": annotation["id"],
        "class_index": class_of.get(as_id(annotation.get("category_id")) or ""),
        "iscrowd": as_whole(annotation.get("iscrowd")) not in (None, 0),
        "segmentation": _outline(annotation),
        "bbox": read_box(annotation.get("bbox"), name, remarks),
    } | ({"points": points} if points else {})


def _outline(annotation: dict[str, Any]) -> Any:
    """An annotation's segmentation, or None for the empty ones that tools write beside boxes: [], [[]]."""
    segmentation = annotation.get("segmentation")
    return None if not segmentation or segmentation == [[]] else segmentation


def _stated_hw(entry: dict[str, Any]) -> tuple[int, int] | None:
    return as_size(entry.get("height"), entry.get("width"))


def _states_nonsense(entry: dict[str, Any]) -> bool:
    stated = entry.get("height") is not None or entry.get("width") is not None
    return stated and _stated_hw(entry) is None


def _read_entries(images: Sequence[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[SourceRow]]:
    """Usable image entries by id, and error rows for the others. Equal entries count once."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    errors = []
    for index, entry in enumerate(images):
        image_id, file_name = as_id(entry.get("id")), entry.get("file_name")
        if image_id is None or not isinstance(file_name, str):
            error = f"images[{index}] has no usable 'id' or 'file_name'"
            name = file_name if isinstance(file_name, str) else ""
            errors.append(SourceRow(image_id=image_id or f"images[{index}]", path=name, error=error))
        elif entry not in by_id.setdefault(image_id, []):
            by_id[image_id].append(entry)
    for image_id, entries in by_id.items():
        error = f"{len(entries)} images have id {image_id}; expected unique ids"
        errors += [
            SourceRow(image_id=image_id, path=entry["file_name"], error=error)
            for entry in (entries if len(entries) > 1 else ())
        ]
    return {image_id: entries[0] for image_id, entries in by_id.items() if len(entries) == 1}, errors


def _categories(content: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """Categories by id, sorted by it. UserError for a repeated id, or a missing id or name."""
    found: dict[str, dict[str, Any]] = {}
    for index, category in enumerate(_objects(content, "categories", path)):
        key = as_id(category.get("id"))
        if key is None or not isinstance(category.get("name"), str):
            raise UserError(f"{path}: categories[{index}] has no usable 'id' or 'name'")
        if key in found:
            raise UserError(f"{path}: categories has id {key} twice; expected unique ids")
        found[key] = category
    return dict(sorted(found.items(), key=_by_number))


def _by_number(item: tuple[str, Any]) -> tuple[bool, int, str]:
    """Sorts ids that are numbers as numbers, since as text 10 comes before 9, and others after them."""
    number = as_whole(item[0])
    return (number is None, number or 0, item[0])


def _roots(categories: Mapping[str, dict[str, Any]]) -> list[str]:
    """Ids of the categories that have no supercategory themselves, but are that of others."""
    top = (None, "", "none")
    named = [c["supercategory"] for c in categories.values() if c.get("supercategory") not in top]
    parents = {name for name in named if isinstance(name, str)}
    return [k for k, c in categories.items() if c.get("supercategory") in top and c["name"] in parents]


def _load_json(path: Path) -> dict[str, Any]:
    content = read_json(path, "expected a COCO instances file")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; expected a COCO object with 'images'")
    return content


def _objects(content: dict[str, Any], field: str, path: Path) -> list[dict[str, Any]]:
    items = content.get(field)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{path}: '{field}' is missing or not a list of objects; expected a COCO file")
    return items
