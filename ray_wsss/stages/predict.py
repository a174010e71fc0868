"""Predict label maps with the trained segmenter, from one view of an image or the average of several."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import PredictConfig
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec
from ray_wsss.models.store import load_segmenter
from ray_wsss.ops.resize import resize_maps, scale_images, shrink, to_tensor


class Predictor:
    """Predicts label maps of images; the segmenter sees only the image, not its image labels.

    Args:
        model: the segmenter, in eval mode, on ``device``.
    """

    def __init__(self, model: Segmenter, spec: SegmenterSpec, config: PredictConfig, device: str) -> None:
        self.model, self.spec, self.config = model, spec, config
        self.device = torch.device(device)

    @classmethod
    def load(cls, segmenter: Path, config: PredictConfig, device: str = "cpu") -> "Predictor":
        """Predictor of ``segmenter``, output of train-segmenter. Raises UserError if it is missing."""
        model, spec = load_segmenter(segmenter)
        return cls(model.to(device), spec, config, device)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Label map (H, W) uint8 of an image (H, W, 3) RGB: 0 background, class c as c + 1."""
        image_hw = (pixels.shape[0], pixels.shape[1])
        return self.predict([shrink(pixels, self.config.max_side_px)], [image_hw])[0]

    @torch.no_grad()
    def predict(
        self, images: Sequence[NDArray[np.uint8]], image_hws: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.uint8]]:
        """Label maps of a batch.

        Args:
            images: (h, w, 3) RGB, all of one size, shrunk to at most ``max_side_px``.
            image_hws: size (H, W) of each label map, in pixels.
        """
        scores = self._scores(to_tensor(images, self.device))
        return [_best_label(s[None], hw).cpu().numpy() for s, hw in zip(scores, image_hws)]

    def _scores(self, images: Tensor) -> Tensor:
        """Scores (B, K, h, w) at the images' size: logits of one view, or summed probabilities of several."""
        size_hw = (images.shape[-2], images.shape[-1])
        first, *others = self._views()
        total = self._logits(images, size_hw, *first)
        if others:
            _softmax(total)
        for view in others:
            total += _softmax(self._logits(images, size_hw, *view))
        return total

    def _views(self) -> Iterator[tuple[float, bool]]:
        """Scale of each view, and whether it is mirrored."""
        for scale in self.config.scales:
            yield scale, False
            if self.config.flip:
                yield scale, True

    def _logits(self, images: Tensor, size_hw: tuple[int, int], scale: float, mirrored: bool) -> Tensor:
        scaled = scale_images(images, scale)
        # Resized directly from the head's cells to the images' size: at scale 1.75 and 81 classes, logits at
        # the view's own size would take a gigabyte.
        logits = self.model(scaled.flip(-1) if mirrored else scaled, size_hw)
        return logits.flip(-1) if mirrored else logits


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities over dimension 1, in place: with many classes, a copy of the logits is large."""
    logits.sub_(logits.amax(1, keepdim=True)).exp_()
    return logits.div_(logits.sum(1, keepdim=True))


def _best_label(scores: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Label (H, W) uint8 with the highest score, from scores (1, K, h, w) resized to (H, W)."""
    if tuple(scores.shape[-2:]) == image_hw:
        return scores[0].argmax(0).to(torch.uint8)
    # One class at a time: scores of all classes at the size of a large photograph would fill the memory.
    best = resize_maps(scores[:, :1], image_hw)[0, 0]
    label = torch.zeros_like(best, dtype=torch.uint8)
    for k in range(1, scores.shape[1]):
        score = resize_maps(scores[:, k : k + 1], image_hw)[0, 0]
        label[score > best] = k
        best = torch.maximum(best, score)
    return label
