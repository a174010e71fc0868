"""Predict label maps with the trained segmenter, from one view of an image or the average of several."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import PredictConfig
from ray_wsss.label_format import LabelMap, label_format, labels_to_array
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec
from ray_wsss.models.store import load_segmenter
from ray_wsss.ops.resize import resize_maps, scale_images, shrink, slices_of, to_tensor


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

    def __call__(self, pixels: NDArray[np.uint8]) -> LabelMap:
        """Label map (H, W) of an image (H, W, 3) RGB: 0 background, class c as c + 1."""
        image_hw = (pixels.shape[0], pixels.shape[1])
        return self.predict([shrink(pixels, self.config.max_side_px)], [image_hw])[0]

    @torch.no_grad()
    def predict(
        self, images: Sequence[NDArray[np.uint8]], image_hws: Sequence[tuple[int, int]]
    ) -> list[LabelMap]:
        """Label maps of a batch.

        Args:
            images: (h, w, 3) RGB, all of one size, shrunk to at most ``max_side_px``.
            image_hws: size (H, W) of each label map, in pixels.
        """
        seen = to_tensor(images, self.device)
        size_hw = (seen.shape[-2], seen.shape[-1])
        views = [self._logits(seen, *view) for view in self._views()]
        return [
            labels_to_array(self._label([view.of_image(k) for view in views], size_hw, image_hw))
            for k, image_hw in enumerate(image_hws)
        ]

    def _label(self, views: Sequence["_View"], size_hw: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
        """Label (H, W) with the highest score, from an image's views, a few labels at a time.

        Scores are logits of one view, or summed probabilities of several, at the size of the image that the
        segmenter sees. They are resized to (H, W).
        """
        num_labels, pixels = views[0].logits.shape[1], max(math.prod(size_hw), math.prod(image_hw))
        parts = slices_of(num_labels, pixels, self.config.max_scores)
        denominators = [view.denominator(size_hw, parts) for view in views] if len(views) > 1 else []
        best = torch.full(image_hw, -torch.inf, device=self.device)
        dtype = label_format(num_labels - 1).tensor_dtype()
        label = torch.zeros(image_hw, dtype=dtype, device=self.device)
        for part in parts:
            scores = _sum_up(views, denominators, part, size_hw)
            scores = (resize_maps(scores, image_hw) if size_hw != image_hw else scores)[0]
            highest = scores.argmax(0, keepdim=True)
            score = scores.gather(0, highest)[0]
            # Of equal scores, the lower label wins.
            label = torch.where(score > best, (highest[0] + part.start).to(dtype), label)
            best = torch.maximum(score, best)
        return label

    def _views(self) -> Iterator[tuple[float, bool]]:
        """Scale of each view, and whether it is mirrored."""
        for scale in self.config.scales:
            yield scale, False
            if self.config.flip:
                yield scale, True

    def _logits(self, images: Tensor, scale: float, mirrored: bool) -> "_View":
        scaled = scale_images(images, scale, self.model.backbone.multiple)
        return _View(self.model(scaled.flip(-1) if mirrored else scaled), mirrored)


@dataclass(frozen=True, eq=False)
class _View:
    """Logits (B, K, h, w) of the head's cells, for one view of the images."""

    logits: Tensor
    mirrored: bool

    def of_image(self, index: int) -> "_View":
        return replace(self, logits=self.logits[index : index + 1])

    def resized(self, labels: slice, size_hw: tuple[int, int]) -> Tensor:
        """Logits of some labels at the images' size, not mirrored.

        They are resized directly from the head's cells, not first to the view's own size, which may be
        larger.
        """
        maps = resize_maps(self.logits[:, labels], size_hw)
        return maps.flip(-1) if self.mirrored else maps

    def denominator(self, size_hw: tuple[int, int], parts: Sequence[slice]) -> tuple[Tensor, Tensor]:
        """Highest logit of each pixel, and the sum of exp(logit - highest) over all labels."""
        tops = [self.resized(part, size_hw).amax(1, keepdim=True) for part in parts]
        top = reduce(torch.maximum, tops)
        sums = [self.resized(part, size_hw).sub_(top).exp_().sum(1, keepdim=True) for part in parts]
        return top, reduce(torch.add, sums)


def _sum_up(
    views: Sequence[_View],
    denominators: Sequence[tuple[Tensor, Tensor]],
    labels: slice,
    size_hw: tuple[int, int],
) -> Tensor:
    """Scores (1, k, h, w) of some labels: logits of the only view, or summed probabilities of several."""
    total = views[0].resized(labels, size_hw)
    for k, (view, (top, summed)) in enumerate(zip(views, denominators)):
        # In place: with many labels, a copy is large.
        probability = (view.resized(labels, size_hw) if k else total).sub_(top).exp_().div_(summed)
        total = total.add_(probability) if k else probability
    return total
