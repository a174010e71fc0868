"""Settings of SAM, of prompting it, and of what is made with it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ray_wsss.config.checks import check, check_choices

SamName = Literal["tiny", "vit_b", "vit_l", "vit_h"]
EncoderPrecision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamConfig:
    """Which Segment Anything Model."""

    section: ClassVar[str] = "sam"

    name: SamName = "vit_h"
    """tiny ships with the package and knows generated scenes only; the others are Meta's."""
    checkpoint: str | None = None
    """Path of the checkpoint. Without one, Meta's file is downloaded once and its hash verified."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """How the image encoder computes; embeddings are float32 always. auto: bf16 where the device has units
    for it (GPUs; CPUs with AVX512-BF16 or AMX), else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the image encoder (torch.compile): half a minute at first, then faster. auto: where there are
    so many images that it pays."""
    encode_batch_size: int = 8
    """Images per pass of the image encoder."""
    decode_batch_size: int = 32
    """Prompt sets per pass of the mask decoder, whichever images and classes they belong to."""

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: v >= 1, "encode_batch_size decode_batch_size", "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptingConfig:
    """From CAM to pseudo label: peaks, point prompts, SAM masks, aggregation."""

    section: ClassVar[str] = "prompting"

    tau: float = 0.5
    """Least CAM value, in [0, 1], for a local maximum to become a prompt (paper: 0.5; 0.4 to 0.7 is flat)."""
    min_distance_px: int = 10
    """Least distance between two peaks and from a peak to the border, in pixels (the paper's d)."""
    keep_global_max: Literal["always", "if_empty", "never"] = "if_empty"
    """Whether the global maximum of a present class is a prompt too (code: always)."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Image scales whose class maps are summed into the CAM that prompts."""
    mask_output: Literal["whole", "best_iou"] = "whole"
    """Which of SAM's three masks: output 2, the whole object (code), or the highest predicted IoU."""
    confidence: Literal["logit", "stability", "iou"] = "logit"
    """A mask's weight where classes compete: logit per pixel (code), stability score (paper) or IoU."""

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: 0 <= v <= 1, "tau", "a CAM value in [0, 1]")
        check(self, lambda v: v >= 1, "min_distance_px", "at least 1 pixel")
        check(self, lambda v: v and all(0 < s <= 4 for s in v), "scales", "one or more scales in (0, 4]")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpmConfig(PromptingConfig):
    """CAM-based Prompting Module: SAM's masks supervise the CAM while the classifier trains."""

    section: ClassVar[str] = "cpm"

    enabled: bool = True
    """Off: a plain classifier."""
    view: Literal["crop", "image"] = "crop"
    """What SAM looks at: every training crop (code), or once each image; its embeddings must be given."""
    warmup_iters: int = 2_644
    """Iterations before CPM begins (code: 2 epochs of VOC trainaug at batch 8)."""
    temperature: float = 1.0
    """Divides the CAM in CPM's cross-entropy; 1 is the released code, less learns small objects faster."""

    def __post_init__(self) -> None:
        PromptingConfig.__post_init__(self)
        check(self, lambda v: v >= 0, "warmup_iters", "0 or more iterations")
        check(self, lambda v: v > 0, "temperature", "more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig(PromptingConfig):
    """Pseudo labels for a whole data set."""

    section: ClassVar[str] = "label"

    prompts: Literal["points", "box", "boxes", "mask"] = "points"
    """What SAM is shown: all peaks of a class (paper); else, of the region above tau around them, one box,
    a box for each peak's share, or the region itself as a mask."""
    flip: bool = True
    """Add the class maps of the mirrored image at every scale."""
    max_side_px: int = 1024
    """Images with a longer side are labelled at this size and the label is scaled back up."""
    batch_size: int = 32
    """Images whose prompt sets are decoded together; their CAMs are in memory at a time."""
    cam_batch_size: int = 8
    """Images (of one size) per pass of the classifier."""

    def __post_init__(self) -> None:
        PromptingConfig.__post_init__(self)
        check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")
        check(self, lambda v: v >= 1, "batch_size cam_batch_size", "at least 1 image")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """The cache of SAM's image embeddings."""

    section: ClassVar[str] = "embed"

    dtype: Literal["fp16", "int8"] = "fp16"
    """How embeddings are stored; int8, with a scale per channel, takes half the space."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentsConfig:
    """Segment everything: the settings of segment_anything's SamAutomaticMaskGenerator, with its defaults."""

    section: ClassVar[str] = "segments"

    points_per_side: int = 32
    """The grid of point prompts has this many rows and columns."""
    pred_iou_thresh: float = 0.88
    """Masks whose predicted IoU is not above this are dropped."""
    stability_score_thresh: float = 0.95
    """Masks that change more than this when their threshold moves are dropped."""
    stability_score_offset: float = 1.0
    """How far the threshold moves, in logits."""
    box_nms_thresh: float = 0.7
    """Of two masks whose boxes overlap by more than this IoU, the one of higher predicted IoU stays."""
    overlap: Literal["smallest_area", "highest_iou"] = "smallest_area"
    """Which mask a pixel goes to that lies in several: the smallest (paper) or SAM's favourite (code)."""
    max_side_px: int = 1024
    """Images with a longer side are segmented at this size and the map is scaled back up."""

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: v >= 1, "points_per_side", "at least 1 point")
        shares = "pred_iou_thresh stability_score_thresh box_nms_thresh"
        check(self, lambda v: 0 <= v <= 1, shares, "a share in [0, 1]")
        check(self, lambda v: v >= 0, "stability_score_offset", "0 or more")
        check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")
