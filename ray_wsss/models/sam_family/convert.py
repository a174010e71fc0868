"""transformers' prompt encoders and mask decoders as segment_anything's, with the same weights.

SAM 2, EdgeTAM, SAM 3's tracker and HQ-SAM kept these parts of SAM, so its decoding for many images serves
them all (`models.sam.decoder`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

Names = Sequence[tuple[str, str]]
"""Patterns of weights' names in transformers, and what replaces them in segment_anything."""

_PROMPTS = (
    (r"^shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"^point_embed\.", "point_embeddings."),
    (r"^mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"^mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"^mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"^mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"^mask_embed\.conv3\.", "mask_downscaling.6."),
)
_TRANSFORMER = (
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm([1-4])\.", r".norm\1."),
    (r"^layer_norm_final_attn\.", "norm_final_attn."),
    (r"\.mlp\.proj_in\.", ".mlp.lin1."),
    (r"\.mlp\.proj_out\.", ".mlp.lin2."),
)
_UPSCALING = (
    (r"^upscale_conv1\.", "0."),
    (r"^upscale_layer_norm\.", "1."),
    (r"^upscale_conv2\.", "3."),
)
_HYPERNETWORK_DEPTH = 3


def convert_prompt_encoder(theirs: nn.Module, config: Any) -> PromptEncoder:
    """segment_anything's prompt encoder with the weights of transformers' one.

    Args:
        config: transformers' ``prompt_encoder_config``.
    """
    grid = config.image_size // config.patch_size
    ours = PromptEncoder(
        embed_dim=config.hidden_size,
        image_embedding_size=(grid, grid),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.mask_input_channels,
    )
    weights = _rename(theirs.state_dict(), _PROMPTS)
    if "point_embeddings.weight" in weights:  # one table of four in SAM 2, four in SAM
        for k, row in enumerate(weights.pop("point_embeddings.weight")):
            weights[f"point_embeddings.{k}.weight"] = row[None]
    ours.load_state_dict(weights)
    return ours


def convert_mask_decoder(theirs: Any, config: Any, sigmoid_iou: bool) -> MaskDecoder:
    """segment_anything's mask decoder with the weights of transformers' one; what SAM lacks is left out.

    Args:
        config: transformers' ``mask_decoder_config``.
        sigmoid_iou: whether predicted IoUs pass a sigmoid.
    """
    ours = MaskDecoder(
        transformer_dim=config.hidden_size,
        transformer=TwoWayTransformer(
            depth=config.num_hidden_layers,
            embedding_dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            mlp_dim=config.mlp_dim,
            attention_downsample_rate=config.attention_downsample_rate,
        ),
        num_multimask_outputs=config.num_multimask_outputs,
        iou_head_depth=config.iou_head_depth,
        iou_head_hidden_dim=config.iou_head_hidden_dim,
    )
    parts: Sequence[tuple[nn.Module, nn.Module, Names]] = (
        (ours.transformer, theirs.transformer, _TRANSFORMER),
        (ours.iou_token, theirs.iou_token, ()),
        (ours.mask_tokens, theirs.mask_tokens, ()),
        (ours.output_hypernetworks_mlps, theirs.output_hypernetworks_mlps, _mlp_names(_HYPERNETWORK_DEPTH)),
        (ours.iou_prediction_head, theirs.iou_prediction_head, _mlp_names(config.iou_head_depth)),
    )
    for mine, other, names in parts:
        mine.load_state_dict(_rename(other.state_dict(), names))
    upscaling = {k: v for k, v in theirs.state_dict().items() if k.startswith("upscale_")}
    ours.output_upscaling.load_state_dict(_rename(upscaling, _UPSCALING))
    ours.iou_prediction_head.sigmoid_output = sigmoid_iou
    _copy_eps(theirs.transformer, ours.transformer)
    return ours


def convert_mlp(theirs: nn.Module, shape: tuple[int, int, int], depth: int) -> nn.Module:
    """segment_anything's MLP of (input, hidden, output) channels with the weights of transformers' one."""
    ours = MLP(*shape, depth)
    ours.load_state_dict(_rename(theirs.state_dict(), _mlp_names(depth)))
    return ours


def _mlp_names(depth: int) -> Names:
    hidden = [(rf"\blayers\.{k}\.", f"layers.{k + 1}.") for k in reversed(range(depth - 2))]
    return (*hidden, (r"\bproj_in\.", "layers.0."), (r"\bproj_out\.", f"layers.{depth - 1}."))


def _rename(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    renamed = {}
    for name, values in weights.items():
        for pattern, ours in names:
            name = re.sub(pattern, ours, name)
        renamed[name] = values
    return renamed


def _copy_eps(theirs: nn.Module, ours: nn.Module) -> None:
    """Give our layer norms the epsilons of theirs, which come in the same order."""
    pairs = ([m for m in model.modules() if isinstance(m, nn.LayerNorm)] for model in (ours, theirs))
    for mine, other in zip(*pairs, strict=True):
        mine.eps = other.eps
