"""One image of the report's gallery, as data for the page's script: facts to sort by, and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_wsss.figures.overview import classes_in
from ray_wsss.label_format import LabelMap
from ray_wsss.report.pictures import encode_heat, encode_labels, encode_outlines, encode_photo


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskOfClass:
    """SAM's mask of one class in an image, or of an annotated object, before they compete for pixels."""

    class_index: int
    points_xy: Sequence[Sequence[float]]
    """Points that prompted SAM, in pixels of the image, x before y."""
    point_labels: Sequence[int] = ()
    """For each point 1, on the object, or 0, beside it; empty if all are on it."""
    box_xyxy: Sequence[float] | None = None
    """Box that prompted SAM: left, top, right, bottom in pixels of the image."""
    mask: NDArray[np.bool_]
    """(H, W)."""
    score: float
    """SAM's predicted IoU, times the mean CAM over the mask if there is one, in [0, 1]."""
    sam_score: float
    """SAM's predicted IoU of the mask."""
    cam_mean: float | None
    """Mean CAM over the mask, in [0, 1]; None for an annotated object."""
    stability_score: float | None
    """IoU of the masks at logits above 1 and above -1; None in labels of earlier versions."""


@dataclass(kw_only=True, eq=False)
class GalleryImage:
    """One image and the results of all stages. Label maps are (H, W): 0 background, class c as c + 1."""

    image_id: str
    group: str
    """Why the image was chosen: best, worst or random; empty if the gallery shows all images."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    image_labels: Sequence[int] = ()
    """Indices of the classes in the image; empty too if they are unknown."""
    score: float | None = None
    """Mean score of the masks."""
    doubt: float | None = None
    """Doubt about the pseudo label, in [0, 1], see `runs.curation.doubt`; None if nothing tells."""
    iou: float | None = None
    """Mean IoU of the pseudo label, in [0, 1], see `runs.curation.agreement.mean_iou`."""
    prediction_iou: float | None = None
    """Mean IoU of the prediction, likewise."""
    cam: NDArray[np.float32] | None = None
    """(h, w) highest CAM over the image's classes, in [0, 1]."""
    masks: list[MaskOfClass] = field(default_factory=list)
    pseudo_label: LabelMap | None = None
    prediction: LabelMap | None = None
    truth: LabelMap | None = None

    def facts(self) -> dict[str, Any]:
        """Values that the page sorts by, filters by and shows, ready for JSON."""
        return {
            "id": self.image_id,
            "group": self.group,
            "width": self.pixels.shape[1],
            "height": self.pixels.shape[0],
            "classes": sorted(self._classes()),
            "score": _rounded(self.score),
            "doubt": _rounded(self.doubt),
            "iou": _rounded(self.iou),
            "predictionIou": _rounded(self.prediction_iou),
            "masks": [_facts_of(mask) for mask in sorted(self.masks, key=lambda mask: -mask.score)],
        }

    def pictures(self, palette: NDArray[np.uint8], side_px: int) -> dict[str, str]:
        """Data URLs by layer: image, and cam, masks, label, prediction and truth if they exist."""
        found = {"image": encode_photo(self.pixels, side_px)}
        if self.cam is not None:
            found["cam"] = encode_heat(self.cam)
        if self.masks:
            # Outlines drawn later lie on top, so the highest score comes last.
            ordered = sorted(self.masks, key=lambda mask: mask.score)
            outlines = [(mask.class_index, mask.mask) for mask in ordered]
            found["masks"] = encode_outlines(outlines, palette, side_px)
        maps = {"label": self.pseudo_label, "prediction": self.prediction, "truth": self.truth}
        for name, label_map in maps.items():
            if label_map is not None:
                found[name] = encode_labels(label_map, palette, side_px)
        return found

    def _classes(self) -> set[int]:
        """Indices of the classes in the image labels, the masks or any label map."""
        maps = [m for m in (self.pseudo_label, self.prediction, self.truth) if m is not None]
        shown = {c for m in maps for c in classes_in(m)}
        return shown | set(self.image_labels) | {mask.class_index for mask in self.masks}


def _facts_of(mask: MaskOfClass) -> dict[str, Any]:
    return {
        "class": mask.class_index,
        "points": [_rounded_pixels(point) for point in mask.points_xy],
        "pointLabels": list(mask.point_labels),
        "box": None if mask.box_xyxy is None else _rounded_pixels(mask.box_xyxy),
        "score": _rounded(mask.score),
        "samScore": _rounded(mask.sam_score),
        "camMean": _rounded(mask.cam_mean),
        "stability": _rounded(mask.stability_score),
        "areaPx": int(mask.mask.sum()),
    }


def _rounded_pixels(values: Sequence[float]) -> list[float]:
    return [round(float(value), 1) for value in values]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
