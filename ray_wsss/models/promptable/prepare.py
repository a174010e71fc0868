"""From images to the input of a promptable model's image encoder."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.models.promptable.interface import PromptableModel


def prepare_images(sam: PromptableModel, images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Convert images, (H, W, 3) uint8 RGB of any sizes, to the model's input (N, 3, S, S), float32.

    They are resized (antialiased), normalised and padded as in ``SamPredictor.set_image`` for SAM.
    """
    resized = [torch.tensor(sam.frame.fit(image), device=sam.device) for image in images]
    return torch.stack([sam.preprocess(image.permute(2, 0, 1).float()) for image in resized])


def resize_like_pillow(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize an image (3, h, w) uint8 as ``PIL.Image.resize`` (bilinear) does; whole numbers as float32.

    Pillow resizes rows, rounds, resizes columns, rounds. The values equal Pillow's, except ties in rounding,
    which differ by 1.
    """
    across = F.interpolate(image[None].float(), (image.shape[1], size_hw[1]), mode="bilinear", antialias=True)
    down = F.interpolate(_round(across), size_hw, mode="bilinear", antialias=True)
    return _round(down)[0]


def _round(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_()
