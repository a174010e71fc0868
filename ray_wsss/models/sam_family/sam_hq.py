"""HQ-SAM: SAM, with one more token whose mask, from finer features, corrects the others."""

from typing import Any

import torch
from torch import Tensor, nn

from ray_wsss.models.promptable.frame import HW
from ray_wsss.models.promptable.interface import Embeddings, MapShape, RunBlock
from ray_wsss.models.sam.decoder import attend, encode_prompts, read_masks, upscale_logits
from ray_wsss.models.sam_family.convert import convert_mlp
from ray_wsss.models.sam_family.model import HubModel


class HqFeatures(nn.Module):
    """The fine features of transformers' `SamHQMaskDecoder`, which depend on the image alone."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.of_vit = _upscaling(
            decoder.compress_vit_conv1, decoder.compress_vit_norm, decoder.compress_vit_conv2
        )
        self.of_embedding = _upscaling(decoder.encoder_conv1, decoder.encoder_norm, decoder.encoder_conv2)

    def forward(self, embedding: Tensor, early: Tensor) -> Tensor:
        """Features (N, D / 8, 4h, 4w) of embeddings (N, D, h, w) and early tokens (N, h, w, C)."""
        return self.of_embedding(embedding) + self.of_vit(early.permute(0, 3, 1, 2))


class SamHq(HubModel):
    """`SamHQModel` of transformers. SAM's own weights are frozen in it, so its outputs mean what SAM's mean.

    Each mask is the sum of SAM's and of the correcting one, as in the authors' predictor. Masks are read from
    the embeddings that attended to the prompts, as in the authors' code; transformers 5.24 drops those.

    Args:
        model: transformers' model, whose parts are taken over.
        prompt_encoder, mask_decoder: those of the model, converted.
    """

    whole = 3
    sigmoid_iou = False

    def __init__(self, model: Any, prompt_encoder: Any, mask_decoder: Any, **facts: Any) -> None:
        super().__init__(model.vision_encoder, prompt_encoder, mask_decoder, **facts)
        decoder, width = model.mask_decoder, mask_decoder.transformer_dim
        self.features = HqFeatures(decoder)
        self.hq_token = decoder.hq_token
        self.hq_mlp = convert_mlp(decoder.hq_mask_mlp, (width, width, width // 8), 3)
        self.refine = _upscaling(decoder.mask_conv1, decoder.mask_norm, decoder.mask_conv2)

    @staticmethod
    def shapes_of(config: Any) -> tuple[MapShape, ...]:
        """Shapes of the maps by transformers' configuration, the coarsest first."""
        width = config.mask_decoder_config.hidden_size
        grid = config.prompt_encoder_config.image_embedding_size
        return (width, grid, grid), (width // 8, 4 * grid, 4 * grid)

    def encode(self, inputs: Tensor, run_block: RunBlock | None = None) -> Embeddings:
        dtype = next(self.image_encoder.parameters()).dtype
        found = self.image_encoder(inputs.to(dtype), return_dict=True)
        embedding, early = found.last_hidden_state.float(), found.intermediate_embeddings[0].float()
        return Embeddings((embedding, self.features(embedding, early)))

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
        embedding, fine = embeddings.maps
        prompts = encode_prompts(self, points_xy, point_labels, boxes_xyxy, mask_logits)
        decoder = self.mask_decoder
        tokens = [token.weight for token in (decoder.iou_token, decoder.mask_tokens, self.hq_token)]
        hidden, source = attend(self, embedding, prompts, torch.cat(tokens), valid, image_index)
        fine = fine if image_index is None else fine[image_index]
        upscaled = decoder.output_upscaling(source)
        end = 1 + decoder.num_mask_tokens
        logits = read_masks(decoder.output_hypernetworks_mlps, hidden[:, 1:end], upscaled)
        correction = read_masks([self.hq_mlp], hidden[:, end : end + 1], self.refine(upscaled) + fine)
        return logits + correction, decoder.iou_prediction_head(hidden[:, 0])

    def upscale(self, logits: Tensor, input_hw: HW, image_hw: HW) -> Tensor:
        return upscale_logits(self, logits, input_hw, image_hw)


def _upscaling(first: nn.Module, norm: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, norm, nn.GELU(), second)
