"""Images to SAM embeddings."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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

DTYPES: dict[EncoderPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Of the weights."""
_COMPILE_FROM = {"cpu": 200, "cuda": 10_000}
"""Images of Meta's SAMs from which compiling pays. On 2 CPU cores it takes 20 s and saves 0.25 (fp32) to 1 s
(bf16) an image of ViT-B; for GPUs this is an estimate."""
_COMPILE_TINY_FROM = 50_000
"""The tiny SAM's: half a millisecond each."""


class SamEncoder:
    """SAM's image encoder as fast as its device allows: batches of one size, no gradients, no autocast.

    Args:
        sam: its image encoder is cast to ``precision``; prompt encoder and decoder stay in float32.
        batch_size: images per pass.
        run_block: of `fast_vit.compile_block`; without it nothing is compiled.
        or_eager: where compiling fails, go on without, and warn.
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
        # Of convolutions only; what is between the blocks has its channels last already.
        for part in (sam.image_encoder.patch_embed, sam.image_encoder.neck):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._copies: torch.cuda.Stream | None = None

    def __call__(self, images: Sequence[NDArray]) -> Tensor:
        """Embeddings (N, D, h, w), float32, of N images, (H, W, 3) uint8 RGB of any sizes.

        On a GPU, images are copied, resized and normalised beside the computing of those before them, and the
        host waits for nothing.
        """
        size = self.batch_size
        batches = [images[at : at + size] for at in range(0, len(images), size)]
        return torch.cat([self.encode(self._upload(batch)) for batch in batches])

    @torch.no_grad()
    def encode(self, inputs: Tensor) -> Tensor:
        """Embeddings (N, D, h, w), float32, of SAM's inputs (N, 3, S, S), on its device.

        Raises:
            UserError: compiling failed.
        """
        with torch.autocast(inputs.device.type, enabled=False), matmul_precision(self.precision):
            return torch.cat([self._pass(part)[: len(part)] for part in inputs.split(self.batch_size)])

    def _pass(self, inputs: Tensor) -> Tensor:
        if self.run_block is None:
            return fast_forward(self.sam.image_encoder, inputs).float()
        # What is compiled is so for one shape.
        full = F.pad(inputs, (0, 0) * 3 + (0, self.batch_size - len(inputs)))
        try:
            return fast_forward(self.sam.image_encoder, full, self.run_block).float()
        except TorchDynamoException as error:
            reason = f"SAM's encoder can't be compiled ({str(error).splitlines()[0]})"
            if not self.or_eager:
                raise UserError(f"{reason}; --sam.compile off does without") from error
            warnings.warn(f"{reason}; it runs uncompiled, slower", stacklevel=2)
            self.run_block = None
            return self._pass(inputs)

    @torch.no_grad()
    def _upload(self, images: Sequence[NDArray]) -> Tensor:
        """SAM's inputs (N, 3, S, S) of some images."""
        if self.sam.device.type != "cuda":
            return prepare_images(self.sam, images)
        self._copies = self._copies or torch.cuda.Stream(self.sam.device)
        with torch.cuda.stream(self._copies):
            inputs = torch.stack([self.sam.preprocess(self._place(image)) for image in images])
        current = torch.cuda.current_stream(self.sam.device)
        current.wait_stream(self._copies)
        inputs.record_stream(current)
        return inputs

    def _place(self, image: NDArray) -> Tensor:
        """An image on the device (3, h, w), long side S; only its bytes travel."""
        size_hw = sam_input_hw(self.sam, (image.shape[0], image.shape[1]))
        return resize_like_pillow(upload(torch.tensor(image), self.sam.device).permute(2, 0, 1), size_hw)


def load_encoder(config: SamConfig, device: torch.device, images: int = 0) -> SamEncoder:
    """SAM with its weights on a device, behind its encoder.

    Args:
        images: how many will be encoded, about: with ``compile=auto`` that decides.

    Raises:
        UserError: as `build_sam`.
    """
    return SamEncoder(
        build_sam(config).to(device),
        precision_on(config, device.type),
        config.encode_batch_size,
        compile_block(flex=device.type == "cuda") if compiles(config, device.type, images) else None,
        or_eager=config.compile == "auto",
    )


def precision_on(config: SamConfig, device: str) -> EncoderPrecision:
    """The precision on a type of torch device; auto is bf16 where there are units for it.

    GPUs that torch still supports have them. Of CPUs it is the one at hand that counts.
    """
    if config.precision != "auto":
        return config.precision
    return "bf16" if device == "cuda" or (device == "cpu" and _cpu_multiplies_bf16()) else "fp32"


def compiles(config: SamConfig, device: str, images: int) -> bool:
    """Whether the encoder is compiled for so many images on a type of torch device."""
    if config.compile != "auto" or device not in _COMPILE_FROM:
        return config.compile == "on"
    return images >= (_COMPILE_TINY_FROM if config.name == "tiny" else _COMPILE_FROM[device])


def sam_input_hw(sam: Sam, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) in pixels that an image has inside SAM's square input."""
    return ResizeLongestSide.get_preprocess_shape(*image_hw, sam.image_encoder.img_size)


def prepare_images(sam: Sam, images: Sequence[NDArray]) -> Tensor:
    """Images, (H, W, 3) uint8 RGB of any sizes, to SAM's input (N, 3, S, S), float32.

    As ``SamPredictor.set_image``: long side to S (antialiased), normalised, padded right and below.
    """
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    # Most come resized from the tasks that decode.
    fitting = [x if max(x.shape[:2]) == resize.target_length else resize.apply_image(x) for x in images]
    resized = [torch.tensor(image, device=sam.device) for image in fitting]
    return torch.stack([sam.preprocess(image.permute(2, 0, 1).float()) for image in resized])


def resize_like_pillow(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """An image (3, h, w) uint8 at another size, float32 of whole numbers, as ``PIL.Image.resize`` (bilinear).

    Pillow resizes rows, rounds, resizes columns, rounds. Its values are met but for ties in rounding, where
    they differ by 1.
    """
    across = F.interpolate(image[None].float(), (image.shape[1], size_hw[1]), mode="bilinear", antialias=True)
    down = F.interpolate(_round(across), size_hw, mode="bilinear", antialias=True)
    return _round(down)[0]


def _round(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_()


def _cpu_multiplies_bf16() -> bool:
    # Older torch does not tell.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


@contextmanager
def matmul_precision(precision: EncoderPrecision) -> Iterator[None]:
    """Where it is tf32, torch multiplies matrices of float32 in TensorFloat-32."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
