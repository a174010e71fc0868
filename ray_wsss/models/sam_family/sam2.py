"""SAM 2.1, EdgeTAM and SAM 3's tracker: three feature maps, of which the two finer ones sharpen the masks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.models.promptable.frame import HW
from ray_wsss.models.promptable.interface import Embeddings, MapShape, RunBlock
from ray_wsss.models.sam.decoder import attend, encode_prompts, enlarge, read_masks
from ray_wsss.models.sam_family.model import HubModel


class Sam2Maps(nn.Module):
    """The part of transformers' `Sam2Model.get_image_features` after the vision encoder; stays float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_s0, self.conv_s1 = model.mask_decoder.conv_s0, model.mask_decoder.conv_s1
        self.no_memory_embedding = nn.Parameter(model.no_memory_embedding.detach().reshape(-1, 1, 1))

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return coarse + self.no_memory_embedding, self.conv_s1(middle), self.conv_s0(fine)


class Sam2(HubModel):
    """`Sam2Model` of transformers, or a model of its kind.

    Nothing says that one of its mask outputs is the whole object: callers choose by predicted IoU.

    Args:
        model: transformers' model, whose parts are taken over.
        prompt_encoder, mask_decoder: those of the model, converted.
    """

    sigmoid_iou = True

    def __init__(self, model: Any, prompt_encoder: Any, mask_decoder: Any, **facts: Any) -> None:
        super().__init__(model.vision_encoder, prompt_encoder, mask_decoder, **facts)
        self.maps = Sam2Maps(model)
        self.object_token = model.mask_decoder.obj_score_token

    @staticmethod
    def shapes_of(config: Any) -> tuple[MapShape, ...]:
        """Shapes of the maps by transformers' configuration, the coarsest first."""
        width = config.mask_decoder_config.hidden_size
        fine, middle, coarse = config.vision_config.backbone_feature_sizes
        return (width, *coarse), (width // 4, *middle), (width // 8, *fine)

    def encode(self, inputs: Tensor, run_block: RunBlock | None = None) -> Embeddings:
        dtype = next(self.image_encoder.parameters()).dtype
        found = self.image_encoder(inputs.to(dtype), return_dict=True).fpn_hidden_states
        return Embeddings(self.maps(*(values.float() for values in found[:3])))

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
        coarse, middle, fine = embeddings.maps
        sparse, dense = encode_prompts(self, points_xy, point_labels, boxes_xyxy, mask_logits)
        # transformers ends boxes with a padding point, and has two where there is only a mask.
        pads = int(boxes_xyxy is not None) or 2 * (points_xy is None)
        padding = self.prompt_encoder.not_a_point_embed.weight.expand(len(sparse), pads, -1)
        prompts = torch.cat([sparse, padding], dim=1), dense
        decoder = self.mask_decoder
        tokens = [token.weight for token in (self.object_token, decoder.iou_token, decoder.mask_tokens)]
        hidden, source = attend(self, coarse, prompts, torch.cat(tokens), valid, image_index)
        if image_index is not None:
            middle, fine = middle[image_index], fine[image_index]
        upscaled = enlarge(decoder, source, middle, fine)
        masks_at = slice(2, 2 + decoder.num_mask_tokens)
        logits = read_masks(decoder.output_hypernetworks_mlps, hidden[:, masks_at], upscaled)
        return logits, decoder.iou_prediction_head(hidden[:, 1])

    def upscale(self, logits: Tensor, input_hw: HW, image_hw: HW) -> Tensor:
        return F.interpolate(logits, image_hw, mode="bilinear", align_corners=False)
