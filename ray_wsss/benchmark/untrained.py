"""Promptable models at their full size with random weights, which run as fast as trained ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ray_wsss.config import SamConfig, SamName
from ray_wsss.models.promptable.interface import PromptableModel
from ray_wsss.models.sam_family.hub import load_hub_model
from ray_wsss.models.sam_family.mobile_sam import untrained_mobile_sam

_HIERA: dict[str, dict[str, Any]] = {
    "tiny": {},  # transformers' defaults
    "small": {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    "base_plus": {
        "hidden_size": 112,
        "num_attention_heads": 2,
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "large": {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 6, 36, 4],
        "window_size_per_stage": [8, 4, 16, 8],
        "global_attention_blocks": [23, 33, 43],
    },
}
"""Sizes of SAM 2.1: what they change in transformers' `Sam2HieraDetConfig`."""
_VIT: dict[str, dict[str, Any]] = {
    "b": {},  # transformers' defaults
    "l": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
        "mlp_dim": 4096,
    },
    "h": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
        "mlp_dim": 5120,
    },
}
"""Sizes of SAM's ViT: what they change in transformers' `SamHQVisionConfig`."""


def untrained_model(name: SamName, work: Path) -> tuple[PromptableModel, Any]:
    """A model with random weights, and what its own predictor takes: transformers' model, or itself.

    Args:
        work: folder for the weights of transformers' models, by which they are handed over.
    """
    torch.manual_seed(0)
    if name == "mobile_sam":
        sam = untrained_mobile_sam().eval().requires_grad_(False)
        _spread(sam)
        return sam, sam
    folder = work / f"random_{name}"
    theirs = _BUILD[name.partition("_")[0]](name)
    _spread(theirs)
    # One for the image and for its prompts, as in trained weights.
    shared = theirs.shared_image_embedding.positional_embedding.detach()
    theirs.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)
    theirs.save_pretrained(folder)
    return load_hub_model(SamConfig(name=name, checkpoint=str(folder))), theirs.eval()


def _sam2(name: SamName) -> Any:
    import transformers

    backbone = transformers.Sam2HieraDetConfig(**_HIERA[name.partition("_")[2]])
    widths = backbone.embed_dim_per_stage
    assert widths is not None
    vision = transformers.Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=widths[::-1])
    return transformers.Sam2Model(transformers.Sam2Config(vision_config=vision))


def _edgetam(name: SamName) -> Any:
    import transformers

    features = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    backbone = transformers.TimmWrapperConfig(architecture="repvit_m1.dist_in1k", model_args=features)
    vision = transformers.EdgeTamVisionConfig(backbone_config=backbone)
    return transformers.EdgeTamModel(transformers.EdgeTamConfig(vision_config=vision))


def _sam3(name: SamName) -> Any:
    import transformers

    vision = transformers.Sam3VisionConfig(scale_factors=[4.0, 2.0, 1.0])
    return transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(vision_config=vision))


def _hq(name: SamName) -> Any:
    import transformers

    size = _VIT[name[-1]]
    decoder = {"vit_dim": size.get("hidden_size", 768)}
    return transformers.SamHQModel(transformers.SamHQConfig(vision_config=size, mask_decoder_config=decoder))


_BUILD: dict[str, Callable[[SamName], Any]] = {
    "sam2.1": _sam2,
    "edgetam": _edgetam,
    "sam3": _sam3,
    "hq": _hq,
}


@torch.no_grad()
def _spread(model: Any) -> None:
    """Make all weights random, and so large that masks have logits of about one, so that errors show."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and len(parameter) > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
