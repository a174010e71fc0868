"""Data that a format gets: one labelled image at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as find_components
from skimage.measure import regionprops

from ray_wsss.label_format import LabelMap, ignore_label

InstancesBy = Literal["components", "class"]


@dataclass(frozen=True, kw_only=True)
class MaskScores:
    """Scores of a class's mask in an image; None where a score is unknown."""

    score: float | None = None
    """SAM's predicted IoU times the mean CAM over the mask, in [0, 1]."""
    predicted_iou: float | None = None
    """SAM's own estimate of the mask's IoU."""
    stability_score: float | None = None
    """IoU of the masks at logits above 1 and above -1, in [0, 1]."""
    cam_mean: float | None = None
    """Mean CAM over the mask, in [0, 1]."""
    points_xy: Sequence[Sequence[float]] = ()
    """Points that prompted SAM, in pixels of the image, x before y."""
    point_labels: Sequence[int] = ()
    """For each point of an annotated object 1, on it, or 0, beside it; empty for peaks of a CAM."""
    box_xyxy: Sequence[float] | None = None
    """Box that prompted SAM for an annotated object: left, top, right, bottom in pixels of the image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """A region of one class: an annotated object, a connected component, or all pixels of the class.

    Objects may overlap; `stacked` tells which is on top.
    """

    class_index: int
    """Position in the exported class names, from 0."""
    top: int
    left: int
    """``top`` and ``left``: upper left corner of ``crop`` in the image, in pixels."""
    crop: NDArray[np.bool_]
    """(h, w) mask within its bounding box."""
    scores: MaskScores
    """Scores of the class's mask. A connected component has only the points that lie inside it."""

    @property
    def area(self) -> int:
        """Area of the mask in pixels."""
        return int(self.crop.sum())

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of ``crop`` in an array (H, W) of the image's size."""
        height, width = self.crop.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def mask(self, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask (H, W) at the size of the image."""
        whole = np.zeros(image_hw, bool)
        whole[self.box] = self.crop
        return whole


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedImage:
    """One image and its labels after filtering."""

    image_id: str
    name: str
    """File name without suffix, safe and unique, see `data.file_names.FileNames`."""
    number: int
    """Unique number of the image."""
    data: bytes
    """Content of the image file."""
    orientation: int
    """EXIF orientation, 1..8, that ``data`` was decoded with for labelling."""
    label_map: LabelMap
    """(H, W): 0 background, exported class k as k + 1, ignored pixels as `label_format` says."""
    instances: Sequence[Instance] = field(default_factory=tuple)
    doubt: float | None = None
    """Doubt about the label, in [0, 1], see `runs.curation.doubt`; None if it was not asked for."""

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.label_map.shape[0], self.label_map.shape[1]


class ExportFormat(Protocol):
    """Writes one output format, image by image."""

    def add(self, image: ExportedImage) -> None:
        """Write the files and entries of one image. Raises ValueError if the image can't be exported."""
        ...

    def finish(self) -> None:
        """Write the files that cover all images, which completes the output."""
        ...


def find_instances(label_map: LabelMap, scores: Mapping[int, MaskScores], by: InstancesBy) -> list[Instance]:
    """Find the instances of a label map, ordered by class and then from top to bottom.

    Args:
        label_map: (H, W), 0 background, class k as k + 1, ignored pixels as `label_format` says.
        scores: scores by class index; classes may be missing.
        by: "components" makes an instance of each connected component (touching corners connect), "class" of
            all pixels of a class.
    """
    inside = np.where(label_map == ignore_label(label_map), 0, label_map)
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


def instance_of(class_index: int, mask: NDArray[np.bool_], scores: MaskScores) -> Instance:
    """The instance of a mask (H, W), whose crop has no pixel if the mask has none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    left, right = (int(columns[0]), int(columns[-1]) + 1) if len(rows) else (0, 0)
    crop = mask[top:bottom, left:right]
    return Instance(class_index=class_index, top=top, left=left, crop=crop, scores=scores)


def stacked(instances: Sequence[Instance]) -> list[int]:
    """Indices of instances from the lowest to the topmost, as classes compete for the pixels of objects.

    On top is the highest predicted IoU; of equal ones the lower class, then the first.
    """

    def rank(k: int) -> tuple[float, int, int]:
        return instances[k].scores.predicted_iou or 0.0, -instances[k].class_index, -k

    return sorted(range(len(instances)), key=rank)


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
