"""Classes of a VOC folder, and the labels that its masks have for them, by colour and by index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.images import ImageError, decode_mask, decode_mask_colours, voc_palette
from ray_wsss.data.schema import check_class_names
from ray_wsss.errors import UserError
from ray_wsss.label_format import MAX_BYTE_CLASSES, LabelMap

VOC_CLASS_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_IGNORED = 255
_NO_CLASSES = {"background": 0, "ignored": _IGNORED, "void": _IGNORED}
"""Labels of names in a label map that are no classes."""
Colour = tuple[int, int, int]
"""Red, green, blue."""


@dataclass(frozen=True, slots=True)
class MaskReader:
    """Reads a mask PNG whose pixels stand for labels by their colour or, in a palette or in grey, by index.

    The colours decide if all that the mask uses are known, whatever their order in the palette. The index
    does if none is, background aside: such a palette only serves viewers. A mask with some of the known
    colours and some others can't be told, and is refused.
    """

    of_colour: Mapping[Colour, int]
    """Label by colour; 0 is background, class c is c + 1, 255 is ignore."""
    of_index: Mapping[int, int]
    """Label by index."""
    origin: str
    """Where the colours are from, for messages."""

    def __call__(self, png: bytes) -> LabelMap:
        """Decode a mask to its (H, W) uint8 label map.

        Raises:
            ImageError: the PNG is incomplete, or has colours or indices that stand for nothing.
        """
        decoded = decode_mask_colours(png)
        if decoded is None:
            return self._by_index(decode_mask(png))
        colours, has_palette = decoded
        used, where = np.unique(colours @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
        rgb = [(colour >> 16, colour >> 8 & 255, colour & 255) for colour in used.tolist()]
        labels = [self.of_colour.get(colour) for colour in rgb]
        if None not in labels:
            return np.array(labels, np.uint8)[where.reshape(colours.shape[:2])]
        if has_palette and not any(labels):
            return self._by_index(decode_mask(png))
        strange = ",".join(map(str, rgb[labels.index(None)]))
        raise ImageError(f"the mask has the colour {strange}; expected {self.origin}")

    def _by_index(self, indices: LabelMap) -> LabelMap:
        used = np.unique(indices).tolist()
        strange = next((index for index in used if index not in self.of_index), None)
        if strange is not None:
            known = ", ".join(map(str, sorted(self.of_index)))
            raise ImageError(f"the mask holds label {strange}; expected one of {known}")
        table = np.zeros(256, np.uint8)
        table[used] = [self.of_index[index] for index in used]
        return table[indices]


def voc_mask_reader(class_count: int) -> MaskReader:
    """Reader of masks in VOC's own colours and order."""
    labels = [*range(class_count + 1), _IGNORED]
    palette = voc_palette()
    return MaskReader(
        {_as_colour(palette[label]): label for label in labels},
        {label: label for label in labels},
        "VOC's colours, or a labelmap.txt beside JPEGImages with lines of 'name:red,green,blue::'",
    )


def read_label_map(path: Path) -> tuple[list[str], MaskReader]:
    """Class names and masks' labels of a ``labelmap.txt``, as CVAT and datumaro write it.

    A line is ``name:red,green,blue:parts:actions``; the colour may be absent. The line ``background`` is no
    class, nor is ``ignored`` or ``void``, whose pixels are ignored. In masks without these colours, index n
    stands for line n, from 0.

    Raises:
        UserError: the file is unreadable or malformed, repeats a name or a colour, or has more classes than
            labels of a byte have room for.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} can't be read ({error}); expected lines of 'name:red,green,blue::'"
        ) from None
    lines = [line.strip() for line in lines]
    entries = [_parse_line(line, path) for line in lines if line and not line.startswith("#")]
    labels = _number([name for name, _ in entries])
    count = sum(name.lower() not in _NO_CLASSES for name, _ in entries)
    if count > MAX_BYTE_CLASSES:
        raise UserError(f"{path} has {count} classes; VOC's masks have room for {MAX_BYTE_CLASSES}")
    class_names = [name for (name, _), label in zip(entries, labels) if 0 < label < _IGNORED]
    check_class_names(class_names, path)
    of_colour: dict[Colour, int] = {}
    for (name, colour), label in zip(entries, labels):
        if colour is not None and of_colour.setdefault(colour, label) != label:
            raise UserError(f"{path} gives '{name}' the colour of another label; expected one colour each")
    first = 0 if 0 in labels else 1  # without a line for the background, index 0 is it
    of_index = {0: 0, _IGNORED: _IGNORED} | dict(enumerate(labels, first))
    void = _as_colour(voc_palette()[_IGNORED])
    of_colour = {void: _IGNORED, (0, 0, 0): 0} | of_colour if of_colour else {}
    return class_names, MaskReader(of_colour, of_index, f"those of {path.name}")


def _number(names: Sequence[str]) -> list[int]:
    """Label of each line of a label map."""
    labels, following = [], 1
    for name in names:
        fixed = _NO_CLASSES.get(name.lower())
        labels.append(following if fixed is None else fixed)
        following += fixed is None
    return labels


def _parse_line(line: str, path: Path) -> tuple[str, Colour | None]:
    name, _, rest = line.partition(":")
    text = rest.partition(":")[0].strip()
    parts = [part.strip() for part in text.split(",")] if text else []
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit() and len(part) <= 3]
    if parts and (len(parts) != 3 or len(numbers) != 3 or max(numbers) > 255):
        raise UserError(f"{path} has the line '{line}'; expected 'name:red,green,blue::', each 0 to 255")
    return name.strip(), (numbers[0], numbers[1], numbers[2]) if parts else None


def _as_colour(rgb: NDArray[np.uint8]) -> Colour:
    red, green, blue = rgb.tolist()
    return red, green, blue
