"""Pascal VOC data sets: image sets, labels from the XML objects, palette masks used as they are on disk."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ray_wsss.data.images import ImageError, decode_mask
from ray_wsss.data.schema import SourceRow, locate
from ray_wsss.data.source import Source
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path

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
_CLASS_OF = {name: index for index, name in enumerate(VOC_CLASS_NAMES)}


def read_voc(root: Path, split: str = "trainval") -> Source:
    """Read the 20 VOC classes and one row per name in ``ImageSets/Segmentation/SPLIT.txt`` (else ``Main``).

    ``root`` is a folder like VOCdevkit/VOC2012. Labels come from all objects in ``Annotations/NAME.xml``,
    difficult ones included. Without that file they come from the mask. An XML without objects, or a mask
    without classes, means none of the classes. Without either, or with a mask of 255 (ignore) alone, the
    labels are unknown.

    Raises:
        UserError: ``root`` is not a VOC folder, or has no such split.
    """
    if not (root / "JPEGImages").is_dir():
        raise UserError(f"{root} has no JPEGImages folder; expected a folder like VOCdevkit/VOC2012")
    rows = [_row(root, name) for name in _names(root, split)]
    return Source(kind="voc", class_names=VOC_CLASS_NAMES, rows=rows)


def _names(root: Path, split: str) -> list[str]:
    sets = [root / "ImageSets" / kind for kind in ("Segmentation", "Main")]
    path = next((s / f"{split}.txt" for s in sets if (s / f"{split}.txt").is_file()), None)
    if path is None:
        known = sorted({file.stem for s in sets for file in s.glob("*.txt")})
        raise UserError(f"{root} has no image set '{split}'; expected one of: {', '.join(known) or '(none)'}")
    # Main's per-class sets have a second column, 1 or -1. It is ignored, since the XML has all labels.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _row(root: Path, name: str) -> SourceRow:
    path, error = locate(root / "JPEGImages", f"{name}.jpg")
    mask_path, mask_error = locate(root / "SegmentationClass", f"{name}.png")
    if error or mask_error:
        return SourceRow(image_id=name, path=path, error=error or mask_error)
    has_mask = parse_path(mask_path).is_file()
    xml = root / "Annotations" / f"{name}.xml"
    stated_hw = None
    image_labels = None
    try:
        if xml.is_file():
            image_labels, stated_hw = _read_xml(xml)
        elif has_mask:
            image_labels = _labels_in_mask(parse_path(mask_path))
    except ImageError as problem:
        return SourceRow(image_id=name, path=path, error=f"mask {Path(mask_path).name}: {problem}")
    except (OSError, ValueError) as problem:
        return SourceRow(image_id=name, path=path, error=str(problem))
    return SourceRow(
        image_id=name,
        path=path,
        image_labels=image_labels,
        stated_hw=stated_hw,
        mask_path=mask_path if has_mask else None,
    )


def _read_xml(path: Path) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """Class indices of the objects, and (height, width) in pixels if the file states a size."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise ValueError(f"{path.name} is not valid XML ({error})") from error
    names = {(item.findtext("name") or "").strip() for item in root.findall("object")}
    unknown = sorted(names - _CLASS_OF.keys())
    if unknown:
        raise ValueError(f"{path.name} has class '{unknown[0]}'; expected one of VOC's 20")
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    height, width = (int(text) if text.isdecimal() else 0 for text in texts)
    stated_hw = (height, width) if min(height, width) > 0 else None  # some tools write zeros
    return tuple(sorted(_CLASS_OF[name] for name in names)), stated_hw


def _labels_in_mask(path: Path) -> tuple[int, ...] | None:
    values = np.unique(decode_mask(path.read_bytes()))
    if values.tolist() == [255]:  # no pixel says anything
        return None
    return tuple(int(value) - 1 for value in values if 0 < value <= len(VOC_CLASS_NAMES))
