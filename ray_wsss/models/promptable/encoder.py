"""Image encoders of promptable models: from images to embeddings."""

import logging
import traceback
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F

from ray_wsss.config import EncoderPrecision, SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.build import build_model
from ray_wsss.models.promptable.interface import Embeddings, PromptableModel, RunBlock
from ray_wsss.models.promptable.precision import DTYPES, compiles, matmul_precision, precision_on, why_slow
from ray_wsss.models.promptable.prepare import prepare_images, resize_like_pillow
from ray_wsss.models.sam.fast_vit import compile_block
from ray_wsss.ops.device import upload

log = logging.getLogger(__name__)


class SamEncoder:
    """A model's image encoder, run as fast as the device allows: in batches, without gradients or autocast.

    Args:
        sam: the model. Its image encoder is cast to ``precision``; prompt encoder and decoder stay float32.
        batch_size: images per forward pass.
        run_block: result of `models.sam.fast_vit.compile_block`; None: nothing is compiled.
        or_eager: if the first compiled pass fails and an uncompiled one does not, warn and stay uncompiled
            instead of raising UserError.
    """

    def __init__(
        self,
        sam: PromptableModel,
        precision: EncoderPrecision = "fp32",
        batch_size: int = 8,
        run_block: RunBlock | None = None,
        *,
        or_eager: bool = False,
    ) -> None:
        self.precision: EncoderPrecision = precision
        self.sam, self.batch_size, self.run_block, self.or_eager = sam, batch_size, run_block, or_eager
        sam.cast_encoder(DTYPES[precision])
        self._compiled = False  # whether compiled code has ever run to its end
        self._copies: torch.cuda.Stream | None = None

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Embeddings:
        """Embeddings of images, (H, W, 3) uint8 RGB of any sizes.

        On a GPU, a batch is copied, resized and normalised while the batch before it is encoded, and the host
        never waits.
        """
        size = self.batch_size
        batches = [images[at : at + size] for at in range(0, len(images), size)]
        return Embeddings.cat([self.encode(self._upload(batch)) for batch in batches])

    @torch.no_grad()
    def encode(self, inputs: Tensor) -> Embeddings:
        """Embeddings of inputs (N, 3, S, S) as from `prepare_images`, on the model's device.

        Raises:
            UserError: compiling failed, and `or_eager` is off.
            Exception: as the uncompiled encoder raises it.
        """
        with torch.autocast(inputs.device.type, enabled=False), matmul_precision(self.precision):
            return Embeddings.cat([self._pass(part)[: len(part)] for part in inputs.split(self.batch_size)])

    def _pass(self, inputs: Tensor) -> Embeddings:
        if self.run_block is None:
            return self.sam.encode(inputs)
        # Compiled code serves one shape, so a smaller batch is filled up.
        full = F.pad(inputs, (0, 0) * 3 + (0, self.batch_size - len(inputs)))
        try:
            embeddings = self.sam.encode(full, self.run_block)
        # Dynamo, Inductor, Triton and the C++ compiler have errors of their own, so any error may be theirs:
        # the uncompiled encoder tells. Once compiled code has run, an error of another kind is not about it.
        except Exception as error:
            if self._compiled and not isinstance(error, TorchDynamoException):
                raise
            traceback.clear_frames(error.__traceback__)  # their tensors may fill the GPU's memory
            return self._uncompiled(inputs, error)
        self._compiled = True
        return embeddings

    def _uncompiled(self, inputs: Tensor, error: Exception) -> Embeddings:
        """Run uncompiled from now on after an error; an error that it has too is raised."""
        embeddings = self.sam.encode(inputs)
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
        """Prepare N images as the model's inputs (N, 3, S, S), on its device."""
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
        """Copy an image to the device as uint8, and resize it there to its size in the input: (3, h, w)."""
        size_hw = self.sam.frame.inner_hw((image.shape[0], image.shape[1]))
        return resize_like_pillow(upload(torch.tensor(image), self.sam.device).permute(2, 0, 1), size_hw)


def load_encoder(config: SamConfig, device: torch.device, images: int = 0) -> SamEncoder:
    """Build a model with its weights on a device, and wrap it in its encoder.

    Args:
        images: approximate number of images to encode; it decides about compiling with ``compile=auto``.

    Raises:
        UserError: as `build_model`.
    """
    precision = precision_on(config, device.type)
    if device.type == "cuda" and (slow := why_slow(precision, torch.cuda.get_device_capability(device))):
        log.warning("%s: %s", torch.cuda.get_device_name(device), slow)
    sam = build_model(config)
    # Cast before the copy to the device, which would need room for float32 else.
    sam.cast_encoder(DTYPES[precision])
    return SamEncoder(
        sam.to(device),
        precision,
        config.encode_batch_size,
        compile_block(flex=device.type == "cuda") if compiles(config, device.type, images) else None,
        or_eager=config.compile == "auto",
    )
