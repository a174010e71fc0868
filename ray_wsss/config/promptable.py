"""The promptable models by name: whose they are, where their weights come from, what their masks mean."""

from dataclasses import dataclass
from typing import Literal, get_args

SamName = Literal[
    "tiny",
    "lite",
    "vit_b",
    "vit_l",
    "vit_h",
    "mobile_sam",
    "hq_vit_b",
    "hq_vit_l",
    "hq_vit_h",
    "sam2.1_tiny",
    "sam2.1_small",
    "sam2.1_base_plus",
    "sam2.1_large",
    "edgetam",
    "sam3_tracker",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """Facts about a promptable model that are known without its weights."""

    title: str
    """Its name in texts."""
    licence: str
    """Licence of the weights."""
    side_px: int = 1024
    """Height and width of its input, in pixels."""
    squeeze: bool = False
    """True: an image is squeezed into the input, without keeping its aspect."""
    has_whole: bool = True
    """True: one of its mask outputs is known to be the whole object."""
    hub_id: str | None = None
    """Repository of the weights on the Hugging Face hub, read with transformers; None for other models."""
    can_compile: bool = False
    """True: its image encoder can be compiled."""
    pred_iou_thresh: float = 0.88
    """Predicted IoU above which segment-everything keeps a mask (that of segment_anything)."""
    stability_score_thresh: float = 0.95
    """Stability score from which segment-everything keeps a mask (that of segment_anything)."""
    gated: bool = False
    """True: the weights are given only to those who asked for access."""


def _sam2(title: str, hub_id: str) -> ModelCard:
    return ModelCard(title=title, licence="Apache-2.0", squeeze=True, has_whole=False, hub_id=hub_id)


def _hq(size: str) -> ModelCard:
    # SAM's weights are frozen in it, so its outputs mean what SAM's mean.
    return ModelCard(
        title=f"HQ-SAM {size}", licence="Apache-2.0", hub_id=f"syscv-community/sam-hq-vit-{size.lower()}"
    )


MODELS: dict[SamName, ModelCard] = {
    "tiny": ModelCard(title="the tiny SAM", licence="Apache-2.0", side_px=128, can_compile=True),
    "lite": ModelCard(
        title="the lite SAM",
        licence="mixed sources, many without stated terms (docs/lite_sam.md)",
        side_px=384,
        pred_iou_thresh=0.4,
        stability_score_thresh=0.1,
    ),
    "vit_b": ModelCard(title="SAM ViT-B", licence="Apache-2.0", can_compile=True),
    "vit_l": ModelCard(title="SAM ViT-L", licence="Apache-2.0", can_compile=True),
    "vit_h": ModelCard(title="SAM ViT-H", licence="Apache-2.0", can_compile=True),
    "mobile_sam": ModelCard(title="MobileSAM", licence="Apache-2.0"),
    "hq_vit_b": _hq("Base"),
    "hq_vit_l": _hq("Large"),
    "hq_vit_h": _hq("Huge"),
    "sam2.1_tiny": _sam2("SAM 2.1 Tiny", "facebook/sam2.1-hiera-tiny"),
    "sam2.1_small": _sam2("SAM 2.1 Small", "facebook/sam2.1-hiera-small"),
    "sam2.1_base_plus": _sam2("SAM 2.1 Base+", "facebook/sam2.1-hiera-base-plus"),
    "sam2.1_large": _sam2("SAM 2.1 Large", "facebook/sam2.1-hiera-large"),
    "edgetam": _sam2("EdgeTAM", "yonigozlan/EdgeTAM-hf"),
    "sam3_tracker": ModelCard(
        title="SAM 3's tracker",
        licence="SAM License",
        side_px=1008,
        squeeze=True,
        has_whole=False,
        hub_id="facebook/sam3",
        gated=True,
    ),
}
assert set(MODELS) == set(get_args(SamName))
