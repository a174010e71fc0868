"""The lite SAM: segment_anything's prompt encoder and mask decoder behind EfficientNet-Lite0.

It is small enough for a laptop's CPU, ships with the package, and knows photographs. Its weights were trained
by ``jobs/train_lite_sam.py``; ``docs/lite_sam.md`` is their model card.

As in SAM 2, finer maps of the encoder reach the decoder on a short cut: they are added to its features while
it enlarges them.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.models.promptable.interface import Embeddings, MapShape, RunBlock
from ray_wsss.models.sam.decoder import attend, encode_prompts, enlarge, read_masks
from ray_wsss.models.sam.lite_encoder import FINE_DIMS, IMAGE_SIZE_PX, PROMPT_DIM, LiteEncoder
from ray_wsss.models.sam.lite_prompts import LitePromptEncoder
from ray_wsss.models.sam.model import SegmentAnything

STRIDE_PX = 16


def lite_checkpoint() -> Path:
    """Path of the weights inside the package (safetensors, fp16)."""
    return Path(str(files("ray_wsss.models.sam") / "lite.safetensors"))


class LiteSam(SegmentAnything):
    """SAM whose image encoder gives three maps, at strides 16, 8 and 4."""

    # LiteEncoder and LitePromptEncoder; Sam declares the types of its own.
    image_encoder: Any
    prompt_encoder: Any

    def set_input_side(self, side_px: int) -> None:
        """Change the side of the input, a multiple of 32 px: no weight depends on it."""
        self.image_encoder.img_size = side_px
        self.prompt_encoder.input_image_size = (side_px, side_px)
        self.prompt_encoder.image_embedding_size = (side_px // STRIDE_PX, side_px // STRIDE_PX)
        self.prompt_encoder.mask_input_size = (side_px // 4, side_px // 4)

    @property
    def map_shapes(self) -> tuple[MapShape, ...]:
        side = self.image_encoder.img_size
        dims = zip((PROMPT_DIM, *FINE_DIMS), (STRIDE_PX, 8, 4))
        return tuple((dim, side // stride, side // stride) for dim, stride in dims)

    def cast_encoder(self, dtype: torch.dtype) -> None:
        self.image_encoder.to(dtype=dtype, memory_format=torch.channels_last)

    def encode(self, inputs: Tensor, run_block: RunBlock | None = None) -> Embeddings:
        dtype = next(self.image_encoder.parameters()).dtype
        return Embeddings(tuple(x.float() for x in self.image_encoder(inputs.to(dtype))))

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
        if image_index is not None:  # prompts are drawn on the maps, which thus differ among them
            embeddings = embeddings[image_index]
        decoder, (coarse, middle, fine) = self.mask_decoder, embeddings.maps
        sparse, dense = encode_prompts(self, points_xy, point_labels, boxes_xyxy, mask_logits)
        if points_xy is not None:
            points_xy = points_xy.to(coarse.dtype)  # segment everything gives float64
            shown = self.prompt_encoder.look(embeddings.maps, points_xy)
            sparse = sparse + F.pad(shown, (0, 0, 0, sparse.shape[1] - shown.shape[1]))
        if points_xy is not None or boxes_xyxy is not None:
            on_coarse, on_middle = self.prompt_encoder.draw(points_xy, point_labels, boxes_xyxy, valid)
            dense, middle = dense + on_coarse, middle + on_middle
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        hidden, source = attend(self, coarse, (sparse, dense), output_tokens, valid)
        tokens = hidden[:, 1 : 1 + decoder.num_mask_tokens]
        enlarged = enlarge(decoder, source, middle, fine)
        logits = read_masks(decoder.output_hypernetworks_mlps, tokens, enlarged)
        return logits, decoder.iou_prediction_head(hidden[:, 0])


def build_lite_sam() -> LiteSam:
    """Build an untrained lite SAM: 384 px input, low-resolution masks 96 x 96.

    Images are normalised as for EfficientNet-Lite0, and otherwise prepared as for Meta's checkpoints.
    """
    grid = IMAGE_SIZE_PX // STRIDE_PX
    encoder: Any = LiteEncoder()
    sam = LiteSam(
        image_encoder=encoder,
        prompt_encoder=LitePromptEncoder(
            embed_dim=PROMPT_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(IMAGE_SIZE_PX, IMAGE_SIZE_PX),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_DIM, mlp_dim=512, num_heads=4),
            transformer_dim=PROMPT_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        ),
        pixel_mean=[127.0, 127.0, 127.0],
        pixel_std=[128.0, 128.0, 128.0],
    )
    return sam.eval()
