"""Images to SAM embeddings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from ray_wsss.config import EncoderPrecision, SamConfig
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.fast_vit import fast_forward, make_tables

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_TF32 = "_multiplies_in_tf32"
"""Attribute of an encoder that is to use TensorFloat-32, which no tensor's type tells."""


def load_sam(config: SamConfig, device: torch.device) -> Sam:
    """SAM with its weights on a device, its image encoder in the precision of the settings.

    Raises:
        UserError: as `build_sam`.
    """
    sam = build_sam(config).to(device)
    set_precision(sam, config.precision_on(device.type))
    return sam


def set_precision(sam: Sam, precision: EncoderPrecision) -> None:
    """Cast SAM's image encoder; prompt encoder and decoder stay in float32."""
    sam.image_encoder.to(_DTYPES[precision])
    vars(sam.image_encoder)[_TF32] = precision == "tf32"


def sam_input_hw(sam: Sam, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) in pixels that an image has inside SAM's square input."""
    return ResizeLongestSide.get_preprocess_shape(*image_hw, sam.image_encoder.img_size)


def prepare_images(sam: Sam, images: Sequence[NDArray]) -> Tensor:
    """Images, (H, W, 3) uint8 RGB of any sizes, to SAM's input (N, 3, S, S), float32.

    As ``SamPredictor.set_image``: long side to S (antialiased), normalised, padded right and below.
    """
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    return _stack(sam, [resize.apply_image(image) for image in images])


def encode_images(sam: Sam, images: Sequence[NDArray]) -> Tensor:
    """Embeddings (N, D, h, w) of N images, (H, W, 3) uint8 RGB of any sizes."""
    with torch.no_grad():
        return encode_inputs(sam, prepare_images(sam, images))


def encode_inputs(sam: Sam, inputs: Tensor) -> Tensor:
    """Embeddings (N, D, h, w), float32, of SAM's inputs (N, 3, S, S); the host never waits for a GPU."""
    make_tables(sam.image_encoder)
    with matmul_precision(sam):
        return fast_forward(sam.image_encoder, inputs).float()


@contextmanager
def matmul_precision(sam: Sam) -> Iterator[None]:
    """Where SAM's encoder is to use TensorFloat-32, torch does in this context."""
    before = torch.get_float32_matmul_precision()
    if vars(sam.image_encoder).get(_TF32):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def encode_resized(sam: Sam, resized: Sequence[NDArray], batch_size: int) -> Tensor:
    """Embeddings (N, D, h, w) of N images whose long side is S already, ``batch_size`` at a time."""
    batches = [resized[at : at + batch_size] for at in range(0, len(resized), batch_size)]
    return torch.cat([encode_inputs(sam, _stack(sam, batch)) for batch in batches])


def _stack(sam: Sam, resized: Sequence[NDArray]) -> Tensor:
    # Bytes are copied to the device, a quarter of what floats would be.
    inputs = [torch.tensor(image, device=sam.device).permute(2, 0, 1).float() for image in resized]
    return torch.stack([sam.preprocess(x) for x in inputs])
