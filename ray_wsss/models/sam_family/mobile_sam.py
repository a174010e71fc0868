"""MobileSAM: SAM's own prompt encoder and mask decoder behind a TinyViT, which timm has.

Its file is that of the authors (``mobile_sam.pt``), or the same weights as safetensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ray_wsss.config import SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.sam.build import cache_folder
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.weights import read_weights
from ray_wsss.storage import cached_file, parse_path

_ADDRESS = "https://github.com/ChaoningZhang/MobileSAM/blob/master/weights/mobile_sam.pt"
_WIDTH, _GRID = 256, 64
_NAMES = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.(\d)\.blocks", r"stages.\1.blocks"),
    # The authors reduce at the end of a stage, timm at the beginning of the next.
    *((rf"^layers\.{k}\.downsample", f"stages.{k + 1}.downsample") for k in range(3)),
    (r"\.c\.", ".conv."),
)
"""Patterns of the TinyViT's names in the authors' file, and what replaces them in timm."""
_UNUSED = r"^(norm_head|head)\.|attention_bias_idxs$|\.ab$"
"""The classifier on top, and tables that follow from the window."""


class TinyVitEncoder(nn.Module):
    """TinyViT-5M with the authors' changes: the last stage keeps its size, and a neck follows.

    Args:
        img_size: height and width of the input, in pixels, a multiple of 16.
    """

    def __init__(self, img_size: int = 16 * _GRID) -> None:
        import timm

        super().__init__()
        self.img_size = img_size
        vit: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0, drop_path_rate=0.0)
        vit.stages[3].downsample.conv2.conv.stride = (1, 1)
        vit.head = nn.Identity()
        self.vit = vit
        self.neck = nn.Sequential(
            nn.Conv2d(vit.num_features, _WIDTH, kernel_size=1, bias=False),
            LayerNorm2d(_WIDTH),
            nn.Conv2d(_WIDTH, _WIDTH, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(_WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (N, 256, S / 16, S / 16) of inputs (N, 3, S, S)."""
        return self.neck(self.vit(x))


def build_mobile_sam(config: SamConfig) -> SegmentAnything:
    """Build MobileSAM with the weights of ``config.checkpoint``, on the CPU.

    Raises:
        UserError: the file is not named, or does not exist, can't be read or does not fit.
    """
    sam = untrained_mobile_sam()
    path = mobile_sam_checkpoint(config)
    try:
        sam.load_state_dict(rename_weights(read_weights(path, "sam.checkpoint")))
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise UserError(f"sam.checkpoint {path} does not fit MobileSAM: {reason}") from error
    return sam.eval().requires_grad_(False)


def mobile_sam_checkpoint(config: SamConfig) -> Path:
    """Local file of MobileSAM's weights.

    Raises:
        UserError: it is not named, or does not exist.
    """
    path = parse_path(config.checkpoint) if config.checkpoint is not None else None
    if path is None or not path.is_file():
        found = "is not set" if path is None else f"{path} does not exist"
        raise UserError(f"sam.checkpoint {found}; expected the weights of MobileSAM, such as {_ADDRESS}")
    return cached_file(path, cache_folder())


def untrained_mobile_sam(img_size: int = 16 * _GRID) -> SegmentAnything:
    """MobileSAM with random weights; images are normalised as for SAM, which is `Sam`'s default."""
    grid = img_size // 16
    transformer = TwoWayTransformer(depth=2, embedding_dim=_WIDTH, mlp_dim=2048, num_heads=8)
    return SegmentAnything(
        image_encoder=TinyVitEncoder(img_size),  # type: ignore[arg-type]
        prompt_encoder=PromptEncoder(
            embed_dim=_WIDTH,
            image_embedding_size=(grid, grid),
            input_image_size=(img_size, img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=transformer,
            transformer_dim=_WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )


def rename_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict with the names of `untrained_mobile_sam`."""
    renamed = {}
    for name, values in weights.items():
        part, _, rest = name.partition(".")
        if part == "image_encoder" and not re.search(_UNUSED, rest):
            renamed[f"image_encoder.{_rename(rest)}"] = values
        elif part != "image_encoder":
            renamed[name] = values
    return renamed


def _rename(name: str) -> str:
    if name.startswith("neck."):
        return name
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return f"vit.{name}"
