"""Networks with their preprocessing: uint8 images in, results at the images' size out.

Images are [B, H, W, 3], RGB, as Pillow, OpenCV (after BGR to RGB) and video readers give them: a user stacks
them, and that is all.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ray_wsss.label_format import label_format
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.segmenter import Segmenter
from ray_wsss.ops.cam import merge_scales
from ray_wsss.ops.resize import resize_images, resize_maps, scale_images, working_hw

LEAST_PX = 32
"""Shortest side that a network sees; `ops.resize.scale_images` enlarges shorter ones."""


class ImageNetwork(Protocol):
    """A network from uint8 images to named results, and what its results are."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]: ...

    outputs: Mapping[str, str]
    """Contents of each result by its name, in the order of the results."""
    longest_px: int
    """Longest side that the network sees."""


class SegmenterNetwork(nn.Module):
    """A segmenter as `stages.predict.Predictor` applies it at one scale: uint8 images to labels and logits.

    Args:
        max_side_px: longer images of a fixed size are scaled down to it, as predict does. Their grey levels
            are not rounded after that, so single pixels at outlines may get another label than predict's.
    """

    def __init__(self, model: Segmenter, max_side_px: int) -> None:
        super().__init__()
        self.model, self.longest_px = model, max_side_px
        num_labels = model.head.out_channels
        self.dtype = label_format(num_labels - 1).tensor_dtype()
        kind = str(self.dtype).removeprefix("torch.")
        self.outputs = {
            "labels": f"[B, H, W] {kind}: 0 is background, class k of the list is k + 1",
            "logits": f"[B, {num_labels}, H, W] float32: background, then the classes; softmax over axis 1 "
            "gives probabilities",
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        image_hw = (images.shape[1], images.shape[2])
        seen = _to_working_size(images, self.longest_px)
        size_hw = (seen.shape[-2], seen.shape[-1])
        view = seen if _is_dynamic(image_hw) else scale_images(seen, 1.0, self.model.backbone.multiple)
        logits = resize_maps(self.model(view), size_hw)
        if size_hw != image_hw:
            logits = resize_maps(logits, image_hw)
        return {"labels": logits.argmax(1).to(self.dtype), "logits": logits}


class ClassifierNetwork(nn.Module):
    """A classifier at one scale, from uint8 images to the classes' probabilities and CAMs.

    The CAMs are those of label with ``label.scales`` 1, without flip and without refinement.

    Args:
        max_side_px: longer images of a fixed size are scaled down to it for the classifier.
    """

    def __init__(self, model: Classifier, max_side_px: int) -> None:
        super().__init__()
        self.model, self.longest_px = model, max_side_px
        self.outputs = {
            "scores": f"[B, {model.num_classes}] float32: probability of each class, in [0, 1]",
            "cams": f"[B, {model.num_classes}, H, W] float32: CAM of each class, divided by its maximum, in "
            "[0, 1]; it means something where the image has the class",
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        image_hw = (images.shape[1], images.shape[2])
        seen = to_float(images)
        if not _is_dynamic(image_hw):
            seen = scale_images(seen, min(1.0, self.longest_px / max(image_hw)), self.model.backbone.multiple)
        output = self.model(seen)
        every = seen.new_ones(seen.shape[0], self.model.num_classes)
        cams = merge_scales([self.model.to_class_maps(output.features)], every, image_hw)
        return {"scores": output.logits.sigmoid(), "cams": cams}


def to_float(images: Tensor) -> Tensor:
    """Images [B, H, W, 3] uint8 as float [B, 3, H, W] in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


def _to_working_size(images: Tensor, max_side_px: int) -> Tensor:
    """Images [B, H, W, 3] uint8 as float [B, 3, h, w] in [0, 1], longer ones of a fixed size scaled down."""
    pixels = images.permute(0, 3, 1, 2).float()
    image_hw = (images.shape[1], images.shape[2])
    if not _is_dynamic(image_hw):
        pixels = resize_images(pixels, working_hw(image_hw, max_side_px))
    return pixels / 255


def _is_dynamic(image_hw: tuple[int, int]) -> bool:
    """True while torch.export traces images of any size, all of which are at most the working size."""
    return any(isinstance(side, torch.SymInt) for side in image_hw)
