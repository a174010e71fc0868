"""Pascal VOC's folders, which torchvision, datumaro and CVAT read.

OUT/JPEGImages/NAME.jpg
OUT/SegmentationClass/NAME.png     palette PNG in VOC's colours: 0 background, class k as k + 1, 255 ignore
OUT/SegmentationObject/NAME.png    palette PNG in VOC's colours: 0 background, instance n as n, 255 ignore
OUT/ImageSets/Segmentation/SPLIT.txt
OUT/labelmap.txt                   class names and colours, in the form that CVAT and datumaro read
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from ray_wsss.data.images import voc_palette
from ray_wsss.errors import UserError
from ray_wsss.export.files import StreamedFile, write_mask, write_picture, write_text
from ray_wsss.export.record import ExportedImage, Instance, stacked
from ray_wsss.label_format import MAX_BYTE_CLASSES, label_format

_MOST_OBJECTS = 254
_IGNORE = label_format(MAX_BYTE_CLASSES).ignore


class VocFormat:
    """Writes Pascal VOC.

    Args:
        boundary_px: width of the band on either side of every instance's outline that becomes 255 (ignore),
            in pixels; 0 for none. VOC's own masks have about two pixels.

    Raises:
        UserError: there are more classes than VOC's masks can hold.
    """

    def __init__(
        self,
        out: Path,
        class_names: Sequence[str],
        *,
        split: str,
        boundary_px: int = 0,
        skip_images: bool = False,
    ) -> None:
        check_voc_classes(class_names)
        self.out, self.class_names = out, class_names
        self.boundary_px, self.skip_images = boundary_px, skip_images
        self.listed = StreamedFile(out / "ImageSets" / "Segmentation" / f"{split}.txt")

    def add(self, image: ExportedImage) -> None:
        write_picture(self.out / "JPEGImages", image, jpeg_only=True, skip=self.skip_images)
        objects = number_objects(image.instances, image.image_hw)
        ignored = (image.label_map == _IGNORE) | self._near_boundaries(image)
        for folder, label_map in (("SegmentationClass", image.label_map), ("SegmentationObject", objects)):
            labels = np.where(ignored, np.uint8(_IGNORE), label_map)
            write_mask(self.out / folder / f"{image.name}.png", labels)
        self.listed.write(f"{image.name}\n")

    def finish(self) -> None:
        colours = voc_palette().tolist()
        labels = {0: "background", _IGNORE: "ignored"}
        for k, class_name in enumerate(self.class_names, 1):
            labels[k] = _as_label(class_name, labels.values())
        lines = [f"{labels[k]}:{','.join(map(str, colours[k]))}::" for k in sorted(labels)]
        write_text(self.out / "labelmap.txt", ["# label:color_rgb:parts:actions", *lines])
        self.listed.finish()

    def _near_boundaries(self, image: ExportedImage) -> NDArray[np.bool_]:
        near = np.zeros(image.image_hw, bool)
        for instance in image.instances if self.boundary_px else ():
            near |= find_boundaries(instance.mask(image.image_hw), mode="thick")
        for _ in range(self.boundary_px - 1):
            near = _grow(near)
        return near


def check_voc_classes(class_names: Sequence[str]) -> None:
    """Raise UserError if there are more classes than VOC's masks can hold."""
    if len(class_names) > MAX_BYTE_CLASSES:
        raise UserError(
            f"there are {len(class_names):,} classes, and VOC's masks have room for {MAX_BYTE_CLASSES}; "
            "expected export coco, folder, yolo or label-studio, or fewer classes by --classes"
        )


def number_objects(instances: Sequence[Instance], image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Map (H, W) with instance n as n, from 1.

    Beside 0 and 255, uint8 has room for 254 numbers; of more instances, the smallest become 255 (ignore).
    """
    order = sorted(range(len(instances)), key=lambda k: -instances[k].area)
    kept = sorted(order[:_MOST_OBJECTS])
    number = {k: n for n, k in enumerate(kept, 1)}
    objects = np.zeros(image_hw, np.uint8)
    for k in stacked(instances):
        objects[instances[k].box][instances[k].crop] = number.get(k, _IGNORE)
    return objects


def _as_label(class_name: str, taken: Collection[str]) -> str:
    """A new name for labelmap.txt, where a colon ends a name and a leading hash sign starts a comment."""
    name = re.sub(r"[:\s]+", " ", class_name).strip().lstrip("#") or "class"
    while name in taken:
        name += "_"
    return name


def _grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask (H, W) grown by one pixel up, down, left and right."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
