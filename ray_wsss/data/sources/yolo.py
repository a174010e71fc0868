"""YOLO data sets, as Ultralytics reads them: ``data.yaml``, folders of images, a text file for each image."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image, ImageDraw

from ray_wsss.data.coco import encode_rle
from ray_wsss.data.coco.prompts import BOX_LEFT_OUT
from ray_wsss.data.folder import list_images
from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.data.source import Source
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path, read_side_by_side

Unannotated = Literal["none", "unknown"]
_FARTHEST = 1.0
"""How far outside the image a corner may lie, in widths and heights of it; beyond, it is in other units."""
_ROUNDED = 1e-6
"""How far outside the image a corner lies by rounding alone."""


@dataclass(frozen=True, slots=True)
class _Image:
    image_id: str
    root: Path
    """Folder that the image must lie in."""
    name: str
    """Path relative to ``root``."""


def read_yolo(data: Path, split: str = "train", unannotated: Unannotated = "none") -> Source:
    """Read the class names and one row per image of a split from the YAML file ``data``.

    A split is a folder of images, a text file that lists them, or a list of such. The labels of
    ``.../images/a.jpg`` are in ``.../labels/a.txt``: in each line a class, then a box (4 numbers) or the
    corners of a polygon, in fractions of width and height. An image gets a mask if all its lines are
    polygons; boxes, and those around polygons, are kept as prompts. A malformed line makes its image an
    error row, but a box with NaN, or without an area, costs itself alone.

    Args:
        unannotated: whether an image with an empty label file, or without one, has none of the classes, which
            is Ultralytics' reading, or unknown labels.

    Raises:
        UserError: ``data`` is missing or malformed, or has no such split.
    """
    content = _load(data)
    class_names = _class_names(content, data)
    images = list(_images(content, data, split))
    read = partial(_row, class_count=len(class_names), unannotated=unannotated)
    return Source(kind="yolo", class_names=class_names, rows=SourceRows.of(read_side_by_side(read, images)))


def in_pixels(
    annotations: list[dict[str, Any]], height: int, width: int, *, paint: bool = True
) -> list[dict[str, Any]]:
    """Annotations whose boxes and polygons in fractions are in pixels, as `data.coco.rasterise` takes them.

    Corners of polygons are truncated to pixels, and pixels under the outline belong to the polygon, as in
    Ultralytics.

    Args:
        paint: whether polygons become RLE.
    """
    return [_in_pixels(a, height, width, paint) if "box_fractions" in a else a for a in annotations]


def _in_pixels(annotation: dict[str, Any], height: int, width: int, paint: bool) -> dict[str, Any]:
    fractions, outline = annotation["box_fractions"], None
    if paint and "fractions" in annotation:
        outline = encode_rle(_paint(annotation["fractions"], height, width))
    bbox = None if fractions is None else np.multiply(fractions, [width, height, width, height]).tolist()
    return {**annotation, "segmentation": outline, "bbox": bbox}


def _paint(fractions: Sequence[float], height: int, width: int) -> np.ndarray:
    corners_xy = np.asarray(fractions).reshape(-1, 2) * [width, height]
    corners_xy = np.clip(np.floor(corners_xy), 0, [width - 1, height - 1]).astype(int)
    mask = Image.new("1", (width, height))
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners_xy.tolist()], fill=1, outline=1)
    return np.asarray(mask)


def _load(data: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(data.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{data} can't be read ({error.strerror or error}); expected data.yaml") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{data} is not valid YAML ({reason}); expected YOLO's data.yaml") from None
    if not isinstance(content, dict):
        raise UserError(f"{data} holds no keys; expected YOLO's data.yaml with 'names' and 'train'")
    return content


def _class_names(content: dict[str, Any], data: Path) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        raise UserError(f"{data}: 'names' is {names!r}; expected the class names, numbered from 0")
    class_names = [str(name) for name in names]
    check_class_names(class_names, data)
    return class_names


def _images(content: dict[str, Any], data: Path, split: str) -> Iterator[_Image]:
    given = content.get(split)
    places: list[Any] = given if isinstance(given, list) else [given]
    if split in ("names", "nc", "path") or not all(isinstance(place, str) and place for place in places):
        known = [name for name in ("train", "val", "test") if content.get(name)]
        raise UserError(f"{data} has no split '{split}'; expected one of: {', '.join(known) or '(none)'}")
    for place in places:
        found = _find(content, data, place)
        prefix = f"{place.strip('./')}/" if len(places) > 1 else ""
        if found.is_dir():
            for name in list_images(found).images:
                yield _Image(f"{prefix}{name}", found, name)
            continue
        for line in _lines(found):
            yield _Image(line.removeprefix("./"), found.parent, line.removeprefix("./"))


def _find(content: dict[str, Any], data: Path, place: str) -> Path:
    """The folder or list that a split names."""
    # Exports of Roboflow say ../train/images for train/images. A ``path`` often was that of another machine.
    root = data.parent / parse_path(str(content.get("path") or "."))
    tried = [base / name for base in (root, data.parent) for name in (place, place.removeprefix("../"))]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise UserError(f"{data}: there is no {tried[0]}; expected a folder of images or a list of them")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); expected a path of an image in each line") from None


def _row(image: _Image, class_count: int, unannotated: Unannotated) -> SourceRow:
    path, error = locate(image.root, image.name)
    if error is not None:
        return SourceRow(image_id=image.image_id, path=path, error=error)
    try:
        lines = _label_path(path).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as problem:
        reason = f"its label file can't be read ({problem})"
        return SourceRow(image_id=image.image_id, path=path, error=reason)
    members: list[dict[str, Any]] = []
    remarks: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            members.append(_annotation(line, f"line {number}", class_count, remarks))
        except ValueError as problem:
            reason = f"line {number} of its label file {problem}"
            return SourceRow(image_id=image.image_id, path=path, error=reason)
        corners = np.asarray(members[-1].get("fractions", []))
        if ((corners < -_ROUNDED) | (corners > 1 + _ROUNDED)).any():
            remarks.append(("polygon clipped to its image", f"line {number} of the label file"))
    labels = tuple(sorted({member["class_index"] for member in members}))
    if not all("fractions" in member for member in members):  # no mask, which would lack the boxes' objects
        members = [{k: v for k, v in member.items() if k != "fractions"} for member in members]
    return SourceRow(
        image_id=image.image_id,
        path=path,
        image_labels=labels if labels or unannotated == "none" else None,
        annotations=members or None,
        remarks=tuple(remarks),
    )


def _label_path(path: str) -> Path:
    before, images, after = path.rpartition("/images/")
    beside = f"{before}/labels/{after}" if images else path
    return parse_path(beside.removesuffix(PurePosixPath(beside).suffix) + ".txt")


def _annotation(line: str, name: str, class_count: int, remarks: list[tuple[str, str]]) -> dict[str, Any]:
    """A line of a label file. Raises ValueError with the end of a sentence on what is wrong.

    Args:
        remarks: receives (remark, detail) for a box that can't be used.
    """
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"is '{line.strip()[:40]}'; expected numbers") from None
    finite = all(map(math.isfinite, numbers[:1] if len(numbers) == 5 else numbers))
    if not finite or len(numbers) < 5 or len(numbers) % 2 == 0:
        raise ValueError(f"has {len(numbers)} numbers; expected a class, then a box or corners of a polygon")
    index, *places = numbers
    if index != int(index) or not 0 <= index < class_count:
        raise ValueError(f"has class {index:g}; expected 0 to {class_count - 1}")
    annotation: dict[str, Any] = {"id": name, "class_index": int(index), "iscrowd": False}
    if len(places) == 4 and not all(map(math.isfinite, places)):
        remarks.append((BOX_LEFT_OUT, f"{name} of the label file: '{line.strip()[:60]}'; expected numbers"))
        return annotation | {"box_fractions": None}
    if min(places) < -_FARTHEST or max(places) > 1 + _FARTHEST:
        raise ValueError(f"has {max(places, key=abs):g}; expected fractions of the image from 0 to 1")
    if len(places) > 4:
        low, high = np.reshape(places, (-1, 2)).min(0), np.reshape(places, (-1, 2)).max(0)
        box = [*low.tolist(), *(high - low).tolist()] if (low < high).all() else None
        return annotation | {"fractions": places, "box_fractions": box}
    x, y, width, height = places
    if min(width, height) <= 0:
        remarks.append((BOX_LEFT_OUT, f"{name} of the label file: '{line.strip()[:60]}' has no area"))
        return annotation | {"box_fractions": None}
    return annotation | {"box_fractions": [x - width / 2, y - height / 2, width, height]}
