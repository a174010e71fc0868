"""What a format is given: one labelled image at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as find_components
from skimage.measure import regionprops

from ray_wsss.ops.losses import IGNORE_LABEL

InstancesBy = Literal["components", "class"]


@dataclass(frozen=True, kw_only=True)
class MaskScores:
    """How sure the pipeline is of a class's mask in an image; None where it is not known."""

    score: float | None = None
    """SAM's predicted IoU times the mean CAM over the mask, in [0, 1]."""
    predicted_iou: float | None = None
    """SAM's own estimate of the mask's IoU."""
    stability_score: float | None = None
    """IoU of the masks at two thresholds around SAM's, in [0, 1]."""
    cam_mean: float | None = None
    """Mean CAM over the mask, in [0, 1]."""
    points_xy: Sequence[Sequence[float]] = ()
    """The points that prompted SAM, pixels of the image, x before y."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """A region of one class: a connected component, or all of the class in the image."""

    class_index: int
    """Position in the exported class names, from 0."""
    top: int
    left: int
    """Corner of ``crop`` in the image, in pixels."""
    crop: NDArray[np.bool_]
    """(h, w), the mask in its bounding box."""
    scores: MaskScores
    """Those of the class's mask; the points are the ones that lie in the instance's own box and mask."""

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.crop.sum())

    @property
    def box(self) -> tuple[slice, slice]:
        """Where ``crop`` lies in an array of the image's size."""
        height, width = self.crop.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def mask(self, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask (H, W) at the image's size."""
        whole = np.zeros(image_hw, bool)
        whole[self.box] = self.crop
        return whole


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedImage:
    """One image and its labels, filtered."""

    image_id: str
    name: str
    """Its file name without suffix: safe, and no other image's."""
    number: int
    """A number that no other image has."""
    data: bytes
    """The image's file."""
    orientation: int
    """EXIF orientation, 1..8, that ``data`` was decoded with."""
    label_map: NDArray[np.uint8]
    """(H, W): 0 background, exported class k as k + 1, 255 ignore."""
    instances: Sequence[Instance] = field(default_factory=tuple)

    @property
    def image_hw(self) -> tuple[int, int]:
        return self.label_map.shape[0], self.label_map.shape[1]


class ExportFormat(Protocol):
    """Writes one form of output, image by image."""

    def add(self, image: ExportedImage) -> None:
        """Write what belongs to one image."""
        ...

    def finish(self) -> None:
        """Write what belongs to all, which makes the output complete."""
        ...


def find_instances(
    label_map: NDArray[np.uint8], scores: Mapping[int, MaskScores], by: InstancesBy
) -> list[Instance]:
    """The instances of a label map, by class and then from top to bottom.

    Args:
        label_map: (H, W), 0 background, class k as k + 1, 255 ignore.
        scores: by class index; a class may be missing.
        by: connected components (pixels that touch at a corner are connected), or one per class.
    """
    inside = np.where(label_map == IGNORE_LABEL, 0, label_map)
    regions = find_components(inside, background=0, connectivity=2) if by == "components" else inside
    found = []
    for region in regionprops(regions):
        rows, columns = region.slice
        class_index = int(label_map[rows, columns][region.image][0]) - 1
        top, left = int(rows.start), int(columns.start)
        of_class = scores.get(class_index, MaskScores())
        points = [p for p in of_class.points_xy if _covers(region.image, p[0] - left, p[1] - top)]
        found.append(
            Instance(
                class_index=class_index,
                top=top,
                left=left,
                crop=region.image,
                scores=replace(of_class, points_xy=points) if by == "components" else of_class,
            )
        )
    return sorted(found, key=lambda instance: instance.class_index)


def find_parts(instance: Instance) -> list[Instance]:
    """The connected components of an instance."""
    parts = find_components(instance.crop, background=0, connectivity=2)
    found = []
    for region in regionprops(parts):
        rows, columns = region.slice
        top, left = instance.top + int(rows.start), instance.left + int(columns.start)
        found.append(replace(instance, top=top, left=left, crop=region.image))
    return found


def _covers(crop: NDArray[np.bool_], x: float, y: float) -> bool:
    row, column = int(np.floor(y)), int(np.floor(x))
    return 0 <= row < crop.shape[0] and 0 <= column < crop.shape[1] and bool(crop[row, column])
