"""Small models of transformers with random weights, saved as folders, and transformers' own predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import SamName

SIDE = 128
WIDTH = 32
_PROMPTS = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16}
_DECODER = {
    "hidden_size": WIDTH,
    "mlp_dim": 64,
    "num_attention_heads": 4,
    "iou_head_hidden_dim": 32,
    "num_hidden_layers": 2,
}
# Without this, transformers' single-mask output is another mask where the first is not stable.
_RAW = {"dynamic_multimask_via_stability": False}


def _together(kind: Any, vision: Any, decoder: dict[str, Any], prompts: dict[str, Any] = _PROMPTS) -> Any:
    return kind(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def _sam2() -> Any:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=WIDTH,
    )
    config = _together(transformers.Sam2Config, vision, _DECODER | _RAW)
    return transformers.Sam2Model(config)


def _edgetam() -> Any:
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m0_9.dist_450e_in1k",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    )
    vision = transformers.EdgeTamVisionConfig(
        backbone_config=backbone,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=WIDTH,
    )
    return transformers.EdgeTamModel(_together(transformers.EdgeTamConfig, vision, _DECODER | _RAW))


def _sam3() -> Any:
    backbone = transformers.Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        pretrain_image_size=112,
        patch_size=14,
        window_size=4,
        global_attn_indexes=[1],
    )
    vision = transformers.Sam3VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=WIDTH,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        scale_factors=[4.0, 2.0, 1.0],
    )
    prompts = _PROMPTS | {"image_size": 112, "patch_size": 14}
    config = _together(transformers.Sam3TrackerConfig, vision, _DECODER | _RAW, prompts)
    return transformers.Sam3TrackerModel(config)


def _hq() -> Any:
    vision = {
        "hidden_size": 48,
        "output_channels": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": WIDTH // 2,
        "mlp_dim": 96,
    }
    config = _together(transformers.SamHQConfig, vision, _DECODER | {"vit_dim": 48})
    return transformers.SamHQModel(config)


@dataclass(frozen=True)
class Small:
    """A kind of model."""

    name: SamName
    build: Callable[[], Any]
    processor: Callable[[], Any]


def _squeezing(kind: str, side: int) -> Any:
    image = getattr(transformers, f"{kind}ImageProcessor")(size={"height": side, "width": side})
    return transformers.Sam2Processor(image)


def _padding() -> Any:
    # That of Pillow, as the authors have it.
    image = transformers.SamImageProcessorPil(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
    )
    return transformers.SamHQProcessor(image)


SMALL = {
    small.name: small
    for small in (
        Small("sam2.1_tiny", _sam2, lambda: _squeezing("Sam2", SIDE)),
        Small("edgetam", _edgetam, lambda: _squeezing("Sam2", SIDE)),
        Small("sam3_tracker", _sam3, lambda: _squeezing("Sam3", 112)),
        Small("hq_vit_b", _hq, _padding),
    )
}


@torch.no_grad()
def build_lively(name: SamName, seed: int = 0) -> Any:
    """A model none of whose weights is zero or one, so that each counts."""
    torch.manual_seed(seed)
    model = SMALL[name].build()
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.shape[0] > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.2 * torch.randn_like(parameter))
    _calibrate(model)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    if name == "hq_vit_b":
        _repair_hq(model.mask_decoder)
    return model.eval()


def _calibrate(model: Any) -> None:
    """Give batch norms the statistics of some images, so that values stay in the range of trained models."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        model.train().vision_encoder(torch.randn(4, 3, SIDE, SIDE))


def _repair_hq(decoder: Any) -> None:
    """Let transformers' HQ-SAM upscale the embeddings that attended to the prompts, as the authors' does.

    `SamHQMaskDecoder.forward` of transformers 5.24 drops them, and upscales those before, with height and
    width swapped. The repair writes the right ones into those, swapped.
    """
    attend = decoder.transformer.forward

    def forward(*, image_embeddings: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
        tokens, attended = attend(image_embeddings=image_embeddings, **others)
        image_embeddings.transpose(2, 3).copy_(attended.transpose(2, 3).reshape(image_embeddings.shape))
        return tokens, attended

    decoder.transformer.forward = forward


def save_small(name: SamName, folder: Path, seed: int = 0) -> Path:
    """A folder as on the hub."""
    build_lively(name, seed).save_pretrained(folder)
    return folder


@torch.no_grad()
def predict(
    name: SamName,
    model: Any,
    image: NDArray[np.uint8],
    points: Sequence[Sequence[Sequence[float]]] | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """transformers' low-resolution logits (N, 4, a, a), IoUs (N, 4) and logits of the image (N, 4, H, W).

    Args:
        points, labels, boxes: of each object, in pixels of the image.
        masks: (1, 1, a, a) logits, for one object.
    """
    processor = SMALL[name].processor()
    prompts: dict[str, Any] = {}
    if points is not None:
        prompts |= {"input_points": [points], "input_labels": [labels]}
    if boxes is not None:
        prompts["input_boxes"] = [boxes]
    inputs = processor(image, return_tensors="pt", **prompts)
    sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    parts = [model(**inputs, input_masks=masks, multimask_output=many) for many in (False, True)]
    logits = torch.cat([part.pred_masks[0] for part in parts], 1)
    iou = torch.cat([part.iou_scores[0] for part in parts], 1)
    (full,) = processor.image_processor.post_process_masks([logits], *sizes, binarize=False)
    return logits, iou, full
