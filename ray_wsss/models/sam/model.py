"""segment_anything's SAM behind the interface of promptable models."""

from typing import cast

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import Tensor, nn

from ray_wsss.models.promptable.frame import HW, InputFrame
from ray_wsss.models.promptable.interface import Embeddings, MapShape, PromptableModel, RunBlock
from ray_wsss.models.sam.decoder import decode_prompts, upscale_logits
from ray_wsss.models.sam.fast_vit import fast_forward


class NoEncoder(nn.Module):
    """Stands in for SAM's image encoder where embeddings come from elsewhere: its size, no weights."""

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size


class SegmentAnything(Sam, PromptableModel):
    """SAM as segment_anything builds it; other networks with its prompt encoder and mask decoder fit as well.

    The image encoder may be any module with ``img_size`` that turns inputs (N, 3, S, S) into (N, D, h, w).
    segment_anything's own runs faster than its code does (`fast_vit`).
    """

    whole = 3  # after the single-mask output: sub-part, part, whole

    @classmethod
    def of(cls, sam: Sam) -> "SegmentAnything":
        """The same networks, not copied, behind the interface."""
        mean, std = sam.get_buffer("pixel_mean"), sam.get_buffer("pixel_std")
        model = cls(
            sam.image_encoder,
            sam.prompt_encoder,
            sam.mask_decoder,
            pixel_mean=mean.flatten().tolist(),
            pixel_std=std.flatten().tolist(),
        )
        return model.to(mean.device).train(sam.training)

    @property
    def _vit(self) -> ImageEncoderViT | None:
        """The image encoder if it is segment_anything's."""
        encoder = cast(nn.Module, self.image_encoder)  # segment_anything's stubs know no other
        return encoder if isinstance(encoder, ImageEncoderViT) else None

    @property
    def can_compile(self) -> bool:
        return self._vit is not None

    @property
    def frame(self) -> InputFrame:
        return InputFrame(self.image_encoder.img_size)

    @property
    def map_shapes(self) -> tuple[MapShape, ...]:
        return ((self.prompt_encoder.embed_dim, *self.prompt_encoder.image_embedding_size),)

    @property
    def mask_side_px(self) -> int:
        return self.prompt_encoder.mask_input_size[0]

    def cast_encoder(self, dtype: torch.dtype) -> None:
        self.image_encoder.to(dtype)
        if (vit := self._vit) is not None:
            # Only the convolutions need this: tensors between the blocks have their channels last already.
            for part in (vit.patch_embed, vit.neck):
                part.to(memory_format=torch.channels_last)

    def drop_encoder(self) -> None:
        self.register_module("image_encoder", NoEncoder(self.image_encoder.img_size))

    def encode(self, inputs: Tensor, run_block: RunBlock | None = None) -> Embeddings:
        if (vit := self._vit) is not None:
            return Embeddings((fast_forward(vit, inputs, run_block).float(),))
        dtype = next(self.image_encoder.parameters()).dtype
        return Embeddings((self.image_encoder(inputs.to(dtype)).float(),))

    def decode(
        self,
        embeddings: Embeddings,
        points_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
        valid: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        (embedding,) = embeddings.maps
        prompts = points_xy, point_labels, boxes_xyxy, mask_logits
        return decode_prompts(self, embedding, *prompts, valid, image_index)

    def upscale(self, logits: Tensor, input_hw: HW, image_hw: HW) -> Tensor:
        return upscale_logits(self, logits, input_hw, image_hw)
