"""An image of the report's gallery, as the page's script gets it: facts to sort by, and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_wsss.report.pictures import encode_heat, encode_labels, encode_outlines, encode_photo


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskOfClass:
    """SAM's mask of one class in an image, before classes compete for pixels."""

    class_index: int
    points_xy: Sequence[Sequence[float]]
    """What SAM was prompted with, pixels of the image, x before y."""
    mask: NDArray[np.bool_]
    """(H, W)."""
    score: float
    sam_score: float
    cam_mean: float
    stability_score: float | None
    """None in labels of earlier versions."""


@dataclass(kw_only=True, eq=False)
class GalleryImage:
    """One image and what every stage made of it; label maps are (H, W), class c as c + 1."""

    image_id: str
    group: str
    """Why it was chosen: best, worst, random, or empty where all are shown."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    image_labels: Sequence[int] = ()
    """Class indices."""
    score: float | None = None
    iou: float | None = None
    """Of the pseudo label."""
    prediction_iou: float | None = None
    cam: NDArray[np.float32] | None = None
    """(h, w), highest over the image's classes, in [0, 1]."""
    masks: list[MaskOfClass] = field(default_factory=list)
    pseudo_label: NDArray[np.uint8] | None = None
    prediction: NDArray[np.uint8] | None = None
    truth: NDArray[np.uint8] | None = None

    def facts(self) -> dict[str, Any]:
        """What the page sorts by, filters by and writes down."""
        return {
            "id": self.image_id,
            "group": self.group,
            "width": self.pixels.shape[1],
            "height": self.pixels.shape[0],
            "classes": sorted(self._classes()),
            "score": _rounded(self.score),
            "iou": _rounded(self.iou),
            "predictionIou": _rounded(self.prediction_iou),
            "masks": [_facts_of(mask) for mask in sorted(self.masks, key=lambda mask: -mask.score)],
        }

    def pictures(self, palette: NDArray[np.uint8], side_px: int) -> dict[str, str]:
        """Data URLs by layer: image, and those that there are of cam, masks, label, prediction, truth."""
        found = {"image": encode_photo(self.pixels, side_px)}
        if self.cam is not None:
            found["cam"] = encode_heat(self.cam)
        if self.masks:
            # The surest on top.
            ordered = sorted(self.masks, key=lambda mask: mask.score)
            outlines = [(mask.class_index, mask.mask) for mask in ordered]
            found["masks"] = encode_outlines(outlines, palette, side_px)
        maps = {"label": self.pseudo_label, "prediction": self.prediction, "truth": self.truth}
        for name, label_map in maps.items():
            if label_map is not None:
                found[name] = encode_labels(label_map, palette, side_px)
        return found

    def _classes(self) -> set[int]:
        """Those that the image is said to have, and those that some map shows."""
        maps = [m for m in (self.pseudo_label, self.prediction, self.truth) if m is not None]
        shown = {int(label) - 1 for m in maps for label in np.unique(m) if 0 < label < 255}
        return shown | set(self.image_labels) | {mask.class_index for mask in self.masks}


def _facts_of(mask: MaskOfClass) -> dict[str, Any]:
    return {
        "class": mask.class_index,
        "points": [[round(float(value), 1) for value in point] for point in mask.points_xy],
        "score": _rounded(mask.score),
        "samScore": _rounded(mask.sam_score),
        "camMean": _rounded(mask.cam_mean),
        "stability": _rounded(mask.stability_score),
        "areaPx": int(mask.mask.sum()),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
