"""A narrow CLIP with random weights, as open_clip keeps its models."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

NARROW = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
BACKBONE = ("vit_base_patch16_clip_quickgelu_224", NARROW)
"""Name and arguments of its image transformer in timm."""
_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_clip(out: Path) -> None:
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": _CONFIG}))
    torch.manual_seed(4)
    model = open_clip.create_model(f"local-dir:{out}", load_weights=False)
    for value in model.parameters():
        if value.ndim:
            torch.nn.init.normal_(value, std=0.2)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "open_clip_model.safetensors")
