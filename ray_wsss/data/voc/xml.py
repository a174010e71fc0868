"""One XML file of a VOC folder: the objects of an image."""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from ray_wsss.data.coco.values import Box, as_box

_EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class ImageXml:
    """What an XML file says of its image."""

    file_name: str
    """Name of the image, empty if the file has none."""
    stated_hw: tuple[int, int] | None
    """Height and width in pixels; None if the file states none, or zeros as some tools do."""
    objects: tuple[tuple[str, Box | None], ...]
    """(class, box) of each object; a box is left, top, width, height in pixels, None if it isn't usable."""
    bad_boxes: tuple[str, ...] = ()
    """Faults of the boxes that aren't usable, one each."""


def read_xml(path: Path) -> ImageXml:
    """Read an XML file.

    Raises:
        OSError: the file can't be read.
        ValueError: the file isn't valid XML, or has an object without a name.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # an unknown encoding is a LookupError
        raise ValueError(f"{path.name} is not valid XML ({error})") from error
    items = root.findall("object")
    objects = tuple((_text(item, "name"), _box(item)) for item in items)
    if not all(name for name, _ in objects):
        raise ValueError(f"{path.name} has an object without a name")
    height, width = _side(root, "height"), _side(root, "width")
    size_hw = (height, width) if min(height, width) > 0 else None
    bad = tuple(
        f"object {number} ({name}): {_edges(item)}; expected finite numbers with an area"
        for number, (item, (name, box)) in enumerate(zip(items, objects), 1)
        if box is None and item.find("bndbox") is not None
    )
    return ImageXml(_text(root, "filename"), size_hw, objects, bad)


def _side(root: ElementTree.Element, name: str) -> int:
    text = _text(root, f"size/{name}")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0


def _box(item: ElementTree.Element) -> Box | None:
    try:
        left, top, right, bottom = (float(_text(item, f"bndbox/{edge}")) for edge in _EDGES)
    except ValueError:
        return None
    # VOC counts pixels from 1, and its right and lower edges are inside.
    return as_box((left - 1, top - 1, right - left + 1, bottom - top + 1))


def _edges(item: ElementTree.Element) -> str:
    return ", ".join(f"{edge} '{_text(item, f'bndbox/{edge}')[:20]}'" for edge in _EDGES)


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
