"""Images to SAM embeddings."""

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor


def sam_input_hw(sam: Sam, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) in pixels that an image has inside SAM's square input."""
    return ResizeLongestSide.get_preprocess_shape(*image_hw, sam.image_encoder.img_size)


def prepare_images(sam: Sam, images: Sequence[NDArray]) -> Tensor:
    """Images, (H, W, 3) uint8 RGB of any sizes, to SAM's input (N, 3, S, S), float32.

    As ``SamPredictor.set_image``: long side to S (antialiased), normalised, padded right and below.
    """
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    inputs = [torch.from_numpy(resize.apply_image(image)).permute(2, 0, 1).float() for image in images]
    return torch.stack([sam.preprocess(x.to(sam.device)) for x in inputs])


def encode_images(sam: Sam, images: Sequence[NDArray]) -> Tensor:
    """Embeddings (N, D, h, w) of N images, (H, W, 3) uint8 RGB of any sizes."""
    with torch.no_grad():
        return sam.image_encoder(prepare_images(sam, images))
