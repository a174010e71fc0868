"""Measure a SAM with one click per object."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from segment_anything.modeling import Sam

from ray_wsss.models.sam.decoder import decode_prompts, upscale_logits
from ray_wsss.models.sam.encoder import SamEncoder, sam_input_hw
from ray_wsss.pretraining.photos import Photo

LEAST_SHARE = 0.01
"""Objects below this share of their image's pixels are left out."""


@dataclass
class ClickFigures:
    """IoUs of masks from one click at the centre of each object."""

    best_iou: list[float] = field(default_factory=list)
    """Of the mask with the highest predicted IoU among outputs 1 to 3."""
    whole: list[float] = field(default_factory=list)
    """Of output 3."""
    single: list[float] = field(default_factory=list)
    """Of output 0."""
    oracle: list[float] = field(default_factory=list)
    """Of the best of outputs 1 to 3."""
    predicted: list[float] = field(default_factory=list)
    """Highest predicted IoU."""

    def extend(self, other: "ClickFigures") -> None:
        """Add the objects of another measurement."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)

    def as_json(self) -> dict[str, float]:
        """Number of objects, and means."""
        means = {name: round(float(np.mean(values)), 4) for name, values in vars(self).items()}
        return {"objects": len(self.whole)} | means


def centre(mask: NDArray[Any]) -> tuple[int, int]:
    """Row and column of the pixel farthest from a mask's border; the image's border counts as one."""
    depth: Any = distance_transform_edt(np.pad(mask, 1))
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row) - 1, int(column) - 1


@torch.no_grad()
def measure_clicks(sam: Sam, photos: Sequence[Photo], least_share: float = LEAST_SHARE) -> ClickFigures:
    """Click on every mask of some photographs that is large enough."""
    figures = ClickFigures()
    encoder = SamEncoder(sam)
    for photo in photos:
        large = np.flatnonzero(photo.areas >= least_share * np.prod(photo.size_hw))
        if not len(large):
            continue
        masks = [photo.mask(int(at)) for at in large]
        input_hw = sam_input_hw(sam, photo.size_hw)
        scale = [new / old for new, old in zip(input_hw[::-1], photo.size_hw[::-1])]
        # As SamPredictor does; SAM's prompt encoder adds half a pixel.
        clicks = [(x * scale[0], y * scale[1]) for y, x in map(centre, masks)]
        points = torch.tensor(clicks)[:, None]
        embedding = encoder([photo.image])
        logits, predicted = decode_prompts(
            sam, embedding.expand(len(masks), -1, -1, -1), points, torch.ones(len(masks), 1)
        )
        found = upscale_logits(sam, logits, input_hw, photo.size_hw) > 0
        for at, mask, answers, scores in zip(large, masks, found.numpy(), predicted.numpy()):
            scored = ~photo.ignored(int(at))
            ious = [(a & mask & scored).sum() / max(((a | mask) & scored).sum(), 1) for a in answers]
            chosen = 1 + int(scores[1:].argmax())
            figures.best_iou.append(ious[chosen])
            figures.whole.append(ious[3])
            figures.single.append(ious[0])
            figures.oracle.append(max(ious[1:]))
            figures.predicted.append(float(scores[chosen]))
    return figures
