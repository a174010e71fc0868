"""Prompting SAM as the released S2C code does it: one image, one class, one decoder call at a time.

It uses segment_anything's own predictor, scikit-image's peaks, and NumPy for the rest. `stages.point_prompts`
is compared with it in speed, and in the pseudo labels, which this code makes independently.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from skimage.feature import peak_local_max

from ray_wsss.config import PromptingConfig


@dataclass
class NaiveMask:
    """SAM's mask of one class in one image."""

    logits: NDArray[np.float32]
    """Logits of the mask (H, W); -inf everywhere if the class has no prompt."""
    score: float
    """SAM's own estimate of the mask's IoU; 0 without a prompt."""
    cam: NDArray[np.float32]
    """CAM of the class (H, W)."""
    points_yx: NDArray[np.int64]
    """Pixels (P, 2) at which SAM was prompted, y before x."""

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The mask (H, W): pixels with positive logits."""
        return self.logits > 0


class NaivePrompter:
    """Turns the CAMs of an image into its pseudo label.

    Args:
        guess: as for `stages.point_prompts.find_prompts`.
    """

    def __init__(self, sam: Sam, config: PromptingConfig, *, guess: bool) -> None:
        self.predictor, self.config, self.guess = SamPredictor(sam), config, guess

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Run SAM's encoder on an image (H, W, 3) uint8 RGB, which later calls of `mask` use."""
        self.predictor.set_image(image)

    def mask(self, cam: NDArray[np.float32], ranking: NDArray[np.float32]) -> NaiveMask:
        """The mask in the current image of a class with the CAM ``cam`` (H, W).

        Args:
            ranking: map (H, W) whose global maximum may become a prompt.
        """
        points_yx = self._points(cam, ranking)
        if not len(points_yx):
            return NaiveMask(np.full(cam.shape, -np.inf, np.float32), 0.0, cam, points_yx)
        size: Any = cam.shape
        points = self.predictor.transform.apply_coords(points_yx[:, ::-1], size)
        points_xy = torch.tensor(points, dtype=torch.float32, device=self.predictor.device)
        ones = torch.ones(1, len(points_xy), device=self.predictor.device)
        logits, iou, _ = self.predictor.predict_torch(points_xy[None], ones, return_logits=True)
        which = 2 if self.config.mask_output != "best_iou" else int(iou[0].argmax())
        above = (logits[0, which] - self.config.mask_threshold).cpu().numpy()
        return NaiveMask(above, float(iou[0, which]), cam, points_yx)

    def _points(self, cam: NDArray[np.float32], ranking: NDArray[np.float32]) -> NDArray[np.int64]:
        distance = self.config.min_distance_px
        border: Any = distance  # scikit-image declares a flag, but also takes a width in pixels
        points_yx = peak_local_max(
            cam, min_distance=distance, threshold_abs=self.config.tau, exclude_border=border
        )
        keep = self.config.keep_global_max
        wanted = keep == "always" or (keep == "if_empty" and not len(points_yx))
        if wanted and (self.guess or cam.max() > 0):
            highest = np.array([np.unravel_index(ranking.argmax(), ranking.shape)])
            points_yx = np.unique(np.concatenate([points_yx, highest]), axis=0)
        return points_yx[np.lexsort(points_yx.T[::-1])]

    def compete(
        self, masks: Sequence[NaiveMask], classes: Sequence[int], image_hw: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        """The pseudo label (H, W): c + 1 where the mask of class c scores highest, 0 where there is no mask.

        Args:
            classes: class indices of the masks, ascending.
        """
        label, best = np.zeros(image_hw, np.uint8), np.full(image_hw, -np.inf, np.float32)
        for class_index, mask in zip(classes, masks):
            inside = mask.inside
            if not inside.any():
                continue
            score = np.where(inside, self._confidence(mask) * mask.cam[inside].mean(), -np.inf)
            label[score > best] = class_index + 1
            best = np.maximum(best, score)
        return label

    def _confidence(self, mask: NaiveMask) -> Any:
        if self.config.confidence == "logit":
            return mask.logits
        if self.config.confidence == "iou":
            return mask.score
        return (mask.logits > 1).sum() / max((mask.logits > -1).sum(), 1)
