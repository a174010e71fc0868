"""SAM's image encoder: from images to embeddings."""

import logging
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F

from ray_wsss.config import EncoderPrecision, SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.fast_vit import RunBlock, compile_block, fast_forward
from ray_wsss.ops.device import upload

log = logging.getLogger(__name__)

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


class SamEncoder:
    """SAM's image encoder, run as fast as the device allows: in batches, without gradients or autocast.

    Args:
        sam: SAM. Its image encoder is cast to ``precision``; prompt encoder and decoder stay float32.
        batch_size: images per forward pass.
        run_block: result of `models.sam.fast_vit.compile_block`; None: nothing is compiled.
        or_eager: if the first compiled pass fails and an uncompiled one does not, warn and stay uncompiled
            instead of raising UserError.
    """

    def __init__(
        self,
        sam: Sam,
        precision: EncoderPrecision = "fp32",
        batch_size: int = 8,
        run_block: RunBlock | None = None,
        *,
        or_eager: bool = False,
    ) -> None:
        self.precision: EncoderPrecision = precision
        self.sam, self.batch_size, self.run_block, self.or_eager = sam, batch_size, run_block, or_eager
        sam.image_encoder.to(DTYPES[precision])
        # Only the convolutions need this: tensors between the blocks have their channels last already.
        for part in (sam.image_encoder.patch_embed, sam.image_encoder.neck):
            part.to(memory_format=torch.channels_last)
        self._compiled = False  # whether compiled code has ever run to its end
        self._copies: torch.cuda.Stream | None = None

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Embeddings (N, D, h, w), float32, of N images, (H, W, 3) uint8 RGB of any sizes.

        On a GPU, a batch is copied, resized and normalised while the batch before it is encoded, and the host
        never waits.
        """
        size = self.batch_size
        batches = [images[at : at + size] for at in range(0, len(images), size)]
        return torch.cat([self.encode(self._upload(batch)) for batch in batches])

    @torch.no_grad()
    def encode(self, inputs: Tensor) -> Tensor:
        """Embeddings (N, D, h, w), float32, of inputs (N, 3, S, S) as from `prepare_images`, on SAM's device.

        Raises:
            UserError: compiling failed, and `or_eager` is off.
            Exception: as the uncompiled encoder raises it.
        """
        with torch.autocast(inputs.device.type, enabled=False), matmul_precision(self.precision):
            return torch.cat([self._pass(part)[: len(part)] for part in inputs.split(self.batch_size)])

    def _pass(self, inputs: Tensor) -> Tensor:
        if self.run_block is None:
            return fast_forward(self.sam.image_encoder, inputs).float()
        # Compiled code serves one shape, so a smaller batch is filled up.
        full = F.pad(inputs, (0, 0) * 3 + (0, self.batch_size - len(inputs)))
        try:
            embeddings = fast_forward(self.sam.image_encoder, full, self.run_block).float()
        # Dynamo, Inductor, Triton and the C++ compiler have errors of their own, so any error may be theirs:
        # the uncompiled encoder tells. Once compiled code has run, an error of another kind is not about it.
        except Exception as error:
            if self._compiled and not isinstance(error, TorchDynamoException):
                raise
            traceback.clear_frames(error.__traceback__)  # their tensors may fill the GPU's memory
            return self._uncompiled(inputs, error)
        self._compiled = True
        return embeddings

    def _uncompiled(self, inputs: Tensor, error: Exception) -> Tensor:
        """Run uncompiled from now on after an error; an error that it has too is raised."""
        embeddings = fast_forward(self.sam.image_encoder, inputs).float()
        # Before the reason, torch 2.7 may write a line that says who raised it.
        lines = str(error).removeprefix("backend='inductor' raised:\n").splitlines()
        told = next(iter(lines), "") or type(error).__name__
        reason = f"SAM's encoder can't be compiled ({told})"
        if not self.or_eager:
            raise UserError(f"{reason}; --sam.compile off runs it uncompiled") from error
        warnings.warn(f"{reason}; it runs uncompiled, slower", stacklevel=2)
        self.run_block = None
        return embeddings

    @torch.no_grad()
    def _upload(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Prepare N images as SAM's inputs (N, 3, S, S), on its device."""
        if self.sam.device.type != "cuda":
            return prepare_images(self.sam, images)
        self._copies = self._copies or torch.cuda.Stream(self.sam.device)
        with torch.cuda.stream(self._copies):
            inputs = torch.stack([self.sam.preprocess(self._place(image)) for image in images])
        current = torch.cuda.current_stream(self.sam.device)
        current.wait_stream(self._copies)
        inputs.record_stream(current)
        return inputs

    def _place(self, image: NDArray[np.uint8]) -> Tensor:
        """Copy an image to the device as uint8, and resize it there to a long side of S: (3, h, w)."""
        size_hw = sam_input_hw(self.sam, (image.shape[0], image.shape[1]))
        return resize_like_pillow(upload(torch.tensor(image), self.sam.device).permute(2, 0, 1), size_hw)


def load_encoder(config: SamConfig, device: torch.device, images: int = 0) -> SamEncoder:
    """Build SAM with its weights on a device, and wrap it in its encoder.

    Args:
        images: approximate number of images to encode; it decides about compiling with ``compile=auto``.

    Raises:
        UserError: as `build_sam`.
    """
    precision = precision_on(config, device.type)
    if device.type == "cuda" and (slow := why_slow(precision, torch.cuda.get_device_capability(device))):
        log.warning("%s: %s", torch.cuda.get_device_name(device), slow)
    sam = build_sam(config)
    # Cast before the copy to the device, which would need room for float32 else.
    sam.image_encoder.to(DTYPES[precision])
    return SamEncoder(
        sam.to(device),
        precision,
        config.encode_batch_size,
        compile_block(flex=device.type == "cuda") if compiles(config, device.type, images) else None,
        or_eager=config.compile == "auto",
    )


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
    return "bf16" if device == "cpu" and _cpu_multiplies_bf16() else "fp32"


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
    if config.compile != "auto" or device not in _COMPILE_FROM:
        return config.compile == "on"
    return images >= (_COMPILE_TINY_FROM if config.name == "tiny" else _COMPILE_FROM[device])


def sam_input_hw(sam: Sam, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width, in pixels, of an image inside SAM's square input."""
    return ResizeLongestSide.get_preprocess_shape(*image_hw, sam.image_encoder.img_size)


def prepare_images(sam: Sam, images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Convert images, (H, W, 3) uint8 RGB of any sizes, to SAM's input (N, 3, S, S), float32.

    As in ``SamPredictor.set_image``, the long side is resized to S (antialiased), and the image is normalised
    and padded right and below.
    """
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    # Most images were resized already by the tasks that decoded them.
    fitting = [x if max(x.shape[:2]) == resize.target_length else resize.apply_image(x) for x in images]
    resized = [torch.tensor(image, device=sam.device) for image in fitting]
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


def _cpu_multiplies_bf16() -> bool:
    # Older versions of torch can't report capabilities.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


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
