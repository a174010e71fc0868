"""Ground-truth masks from a folder of the user's, for any source."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ray_wsss.data.folder import is_hidden
from ray_wsss.data.images import ImageError
from ray_wsss.data.schema import SourceRow, locate
from ray_wsss.data.source import Source
from ray_wsss.data.sources.locations import name_of
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError, did_you_mean
from ray_wsss.label_format import LabelMap, ignore_label, label_format
from ray_wsss.storage import find_files


def with_masks(source: Source, folder: Path, mask_values: Mapping[int, int] | None = None) -> Source:
    """The source with the PNGs below ``folder`` as ground truth, in place of masks of its own.

    The mask of ``cat/tom.jpg`` is ``cat/tom.jpg.png`` or ``cat/tom.png``, else a ``tom.png`` anywhere if it
    is the only mask and the image the only one of that name. The remarks count images with masks, and masks
    that belong to no image.

    Args:
        mask_values: label by value of the masks, see `read_mask_values`; None: the masks hold labels.

    Raises:
        UserError: ``folder`` is not a folder, or no mask fits an image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one of masks (--masks)")
    masks = sorted(name for name in find_files(folder) if name.lower().endswith(".png"))
    masks = [name for name in masks if not is_hidden(name)]
    names = _Names(masks, source.rows)
    used: set[str] = set()

    def rows() -> Iterator[SourceRow]:
        for row in source.rows:
            mask = names.of(row)
            if mask is not None:
                used.add(mask)
            yield _with_mask(row, folder, mask)

    found = SourceRows.of(rows())
    with_mask = sum(row.mask_path is not None for row in found)
    if not with_mask:
        first = f"such as {masks[0]}" if masks else "of which there are none"
        raise UserError(f"no image has a mask in {folder}; expected PNGs named like the images, {first}")
    remarks = [f"{with_mask} of {len(found)} images have a mask in {folder}"]
    left = [name for name in masks if name not in used]
    if left:
        remarks.append(f"{len(left)} masks in {folder} belong to no image, the first is {left[0]}")
    return replace(source, rows=found, mask_values=mask_values, remarks=[*source.remarks, *remarks])


def read_mask_values(words: Sequence[str], class_names: Sequence[str]) -> dict[int, int]:
    """Label by value of masks, from words such as ``1=cat`` or from a file of such lines.

    A name is that of a class, "background" or "ignore". Unless they are given, 0 is background and 255
    is ignore, or 65,535 above 254 classes.

    Args:
        words: pairs VALUE=NAME, or the path of a text file with a pair per line (``1=cat``, ``1: cat`` or
            ``1 cat``).

    Raises:
        UserError: a pair is malformed, its class is unknown, or its value is repeated.
    """
    ignore = label_format(len(class_names)).ignore
    labels, words_known = dict[int, int](), {"background": 0, "ignore": ignore}
    for word in _pairs(words):
        match = re.fullmatch(r"\s*(\d{1,5})\s*[=:\s]\s*(.+?)\s*", word)
        if match is None:
            raise UserError(f"--mask-values has '{word}'; expected VALUE=CLASS, such as 1=cat")
        value, name = int(match[1]), match[2]
        if name not in words_known and name not in class_names:
            known = [*class_names, *words_known]
            hint = did_you_mean(name, known, f"expected one of {', '.join(known[:20])}")
            raise UserError(f"--mask-values has '{word}', of which '{name}' is no class; {hint}")
        if value in labels:
            raise UserError(f"--mask-values has the value {value} twice; expected one class for each value")
        labels[value] = class_names.index(name) + 1 if name in class_names else words_known[name]
    return {0: 0, ignore: ignore} | labels


def _pairs(words: Sequence[str]) -> list[str]:
    if len(words) != 1 or "=" in words[0]:
        return list(words)
    path = Path(words[0])
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--mask-values {path} can't be read ({error}); expected lines of VALUE=CLASS"
        ) from None
    return [line for line in lines if line.strip()]


def to_labels(values: LabelMap, labels: Mapping[int, int], num_classes: int) -> LabelMap:
    """Replace the values of a mask (H, W) by their labels. Raises ImageError for a value without a label."""
    found = np.unique(values)
    strange = [value for value in found.tolist() if value not in labels]
    if strange:
        known = ", ".join(map(str, sorted(labels)))
        raise ImageError(f"the mask holds the value {strange[0]}, which is no class; expected one of {known}")
    table = np.array([labels[value] for value in found.tolist()], label_format(num_classes).dtype)
    return table[np.searchsorted(found, values)]


def labels_in(label_map: LabelMap) -> tuple[int, ...] | None:
    """Class indices in a label map (H, W), from 0 and sorted; None if all of its pixels are ignored."""
    found, ignore = np.unique(label_map).tolist(), ignore_label(label_map)
    return None if found == [ignore] else tuple(label - 1 for label in found if label not in (0, ignore))


class _Names:
    """Finds the masks of images by name."""

    def __init__(self, masks: Sequence[str], rows: Sequence[SourceRow]) -> None:
        self.by_name = {name[: -len(".png")]: name for name in masks}
        masks_of = Counter(name_of(name) for name in self.by_name)
        images_of = Counter(stem for row in rows if (stem := _stem(name_of(_path_of(row)))) in masks_of)
        self.by_stem = {
            stem: mask
            for name, mask in self.by_name.items()
            if masks_of[stem := name_of(name)] == 1 and images_of[stem] == 1
        }

    def of(self, row: SourceRow) -> str | None:
        """Name of a row's mask; None if it has none."""
        exact = self.by_name.get(row.image_id) or self.by_name.get(_stem(row.image_id))
        return exact or self.by_stem.get(_stem(name_of(_path_of(row))))


def _path_of(row: SourceRow) -> str:
    """What the image is named after: its file, or its id where the file holds many images."""
    return row.path if row.byte_range is None and row.cell is None else row.image_id


def _with_mask(row: SourceRow, folder: Path, mask: str | None) -> SourceRow:
    if mask is None:
        return replace(row, mask_path=None, annotations=_without_outlines(row.annotations))
    path, error = locate(folder, mask)
    annotations = _without_outlines(row.annotations)
    return replace(row, mask_path=path, annotations=annotations, error=row.error or error)


def _without_outlines(annotations: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Annotations that make no mask, but still have boxes and points; None without any."""
    outlines = ("fractions", "brush")
    return [
        {name: value for name, value in a.items() if name not in outlines} | {"segmentation": None}
        for a in annotations or ()
    ] or None


def _stem(name: str) -> str:
    """A name without its suffix."""
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name
