"""Precision of image encoders, and from how many images on compiling one pays off."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from ray_wsss.config import EncoderPrecision, SamConfig
from ray_wsss.ops.device import has_bf16

Capability = tuple[int, int]
"""CUDA compute capability of a GPU, such as (7, 5) of a T4."""

DTYPES: dict[EncoderPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Dtype of the encoder's weights, by precision."""
_BF16_FROM: Capability = (8, 0)
"""Lowest compute capability with units for bf16, and with torch's fused attention in bf16 (CUDA C++
Programming Guide, arithmetic instructions; `torch.nn.attention`)."""
_FUSED_FROM: Capability = (5, 0)
"""Lowest compute capability with torch's memory-efficient attention in fp32 and fp16."""
_COMPILE_FROM = {"cpu": 200, "cuda": 10_000}
"""Number of images from which compiling Meta's SAMs pays off, by device type. On 2 CPU cores compiling takes
20 s and saves 0.25 s (fp32) to 1 s (bf16) per image of ViT-B; the number for GPUs is an estimate."""
_COMPILE_TINY_FROM = 50_000
"""The same number for the tiny SAM, where compiling saves half a millisecond per image."""


def precision_on(config: SamConfig, device: str, capability: Capability | None = None) -> EncoderPrecision:
    """Precision of the image encoder on a type of torch device; auto is bf16 where the hardware has it.

    Other GPUs (T4, V100, RTX 20xx) get fp32. They are several times faster in fp16, but fp16 overflows above
    65,504, and nobody has checked here that ViT-H's activations stay below; the user may choose fp16.
    For CPUs, the CPU of this machine decides.

    Args:
        capability: capability of the GPU, for ``device="cuda"``; None asks this process's own GPU, and is an
            error without one.
    """
    if config.precision != "auto":
        return config.precision
    if device == "cuda":
        return "bf16" if (capability or torch.cuda.get_device_capability()) >= _BF16_FROM else "fp32"
    return "bf16" if has_bf16(torch.device(device)) else "fp32"


def why_slow(precision: EncoderPrecision, capability: Capability) -> str | None:
    """Warning that a GPU is slow at this precision for lack of fused attention; None if it isn't."""
    attention = "SAM's attention writes out 4096 x 4096 weights per head, which is slow and needs much memory"
    if capability < _FUSED_FROM:
        return f"compute capability {capability[0]}.{capability[1]} has no fused attention: {attention}"
    if precision == "bf16" and capability < _BF16_FROM:
        return (
            f"compute capability {capability[0]}.{capability[1]} has neither units nor fused attention for "
            f"sam.precision bf16: every product is emulated, and {attention}; fp32 and fp16 are faster"
        )
    return None


def compiles(config: SamConfig, device: str, images: int) -> bool:
    """Whether the encoder is compiled for this number of images on a type of torch device."""
    if config.compile != "auto" or device not in _COMPILE_FROM or not config.card.can_compile:
        return config.compile == "on"
    return images >= (_COMPILE_TINY_FROM if config.name == "tiny" else _COMPILE_FROM[device])


@contextmanager
def matmul_precision(precision: EncoderPrecision) -> Generator[None, None, None]:
    """Context in which torch multiplies float32 matrices in TensorFloat-32, if the precision is tf32."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
