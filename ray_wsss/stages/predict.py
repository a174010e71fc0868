"""Predict label maps with the trained segmenter, from one view of an image or the average of several."""

import math
from collections.abc import Iterator, Sequence
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
from ray_wsss.ops.tiles import needs_tiles
from ray_wsss.stages.segmenter_views import View, sum_up
from ray_wsss.stages.tiles.predict import predict_in_tiles


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
        if needs_tiles(image_hw, self.config.tile_px):
            return predict_in_tiles(self.views_of, pixels, self.num_labels, self.config, self.device)
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
        size_hw = (images[0].shape[0], images[0].shape[1])
        views = self.views_of(images)
        return [
            labels_to_array(self._label([view.of_image(k) for view in views], size_hw, image_hw))
            for k, image_hw in enumerate(image_hws)
        ]

    @torch.no_grad()
    def views_of(self, images: Sequence[NDArray[np.uint8]]) -> list[View]:
        """Logits of all views of a batch of images (h, w, 3) RGB of one size."""
        seen = to_tensor(images, self.device)
        return [self._logits(seen, *view) for view in self._views()]

    @property
    def num_labels(self) -> int:
        """Number of labels, background included."""
        return 1 + len(self.spec.class_names)

    def _label(self, views: Sequence[View], size_hw: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
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
            scores = sum_up(views, denominators, part, size_hw)
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

    def _logits(self, images: Tensor, scale: float, mirrored: bool) -> View:
        scaled = scale_images(images, scale, self.model.backbone.multiple)
        return View(self.model(scaled.flip(-1) if mirrored else scaled), mirrored)
