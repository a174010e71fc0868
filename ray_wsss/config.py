"""Every setting of the pipeline: frozen, validated dataclasses.

The defaults are the paper's VOC recipe. Values marked (code) are those of the released S2C code,
(supplement) those of the paper's supplement, where the two differ the comment says which is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

from ray_wsss.errors import UserError

SamName = Literal["tiny", "vit_b", "vit_l", "vit_h"]


def _check(config: Any, ok: Callable[[Any], bool], names: str, expected: str) -> None:
    """Raise UserError for the first of the fields ``names`` whose value is not ok."""
    for name in names.split():
        value = getattr(config, name)
        try:
            good = ok(value)
        except (TypeError, IndexError):  # such as a word where a number belongs
            good = False
        if not good:
            raise UserError(f"{config.section}.{name} is {value}; expected {expected}")


def _check_choices(config: Any) -> None:
    """Raise UserError for a field with a fixed set of values that has another one."""
    for f in fields(config):
        if get_origin(f.type) is Literal:
            choices = get_args(f.type)
            _check(config, choices.__contains__, f.name, f"one of {', '.join(map(str, choices))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamConfig:
    """Which Segment Anything Model."""

    section: ClassVar[str] = "sam"

    name: SamName = "vit_h"
    """tiny ships with the package and knows generated scenes only; the others are Meta's."""
    checkpoint: str | None = None
    """Path of the checkpoint. Without one, Meta's file is downloaded once and its hash verified."""
    encode_batch_size: int = 8
    """Images per pass of the image encoder."""
    decode_batch_size: int = 32
    """Prompt sets per pass of the mask decoder, whichever images and classes they belong to."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check(self, lambda v: v >= 1, "encode_batch_size decode_batch_size", "at least 1")


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
        _check_choices(self)
        _check(self, lambda v: 0 <= v <= 1, "tau", "a CAM value in [0, 1]")
        _check(self, lambda v: v >= 1, "min_distance_px", "at least 1 pixel")
        _check(self, lambda v: v and all(0 < s <= 4 for s in v), "scales", "one or more scales in (0, 4]")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpmConfig(PromptingConfig):
    """CAM-based Prompting Module: SAM's masks supervise the CAM while the classifier trains."""

    section: ClassVar[str] = "cpm"

    enabled: bool = True
    """Off: a plain classifier."""
    warmup_iters: int = 2_644
    """Iterations before CPM begins (code: 2 epochs of VOC trainaug at batch 8)."""
    temperature: float = 1.0
    """Divides the CAM in CPM's cross-entropy; 1 is the released code, less learns small objects faster."""

    def __post_init__(self) -> None:
        PromptingConfig.__post_init__(self)
        _check(self, lambda v: v >= 0, "warmup_iters", "0 or more iterations")
        _check(self, lambda v: v > 0, "temperature", "more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Weights of the parts of the classifier's loss."""

    section: ClassVar[str] = "classifier.loss_weights"

    cls: float = 1.0
    """Classification (binary cross-entropy)."""
    ssc: float = 1.0
    """SAM-Segment Contrasting."""
    cpm: float = 1.0
    """CAM-based Prompting Module."""

    def __post_init__(self) -> None:
        _check(self, lambda v: v >= 0, "cls ssc cpm", "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random geometry and colour of a training crop (code: as given here)."""

    section: ClassVar[str] = "augment"

    long_side_px: tuple[int, int] = (256, 512)
    """The image's long side is drawn from this range."""
    crop_px: int = 256
    """Side of the square training crop."""
    flip: bool = True
    """Horizontal flip, probability 0.5."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Brightness, contrast, saturation, hue."""
    jitter_probability: float = 0.8
    """Share of crops with colour jitter."""
    grey_probability: float = 0.02
    """Share of crops made grey."""

    def __post_init__(self) -> None:
        _check(self, lambda v: 0 < v[0] <= v[1], "long_side_px", "two lengths, 0 < least <= most")
        _check(self, lambda v: v >= 32, "crop_px", "at least 32 pixels")
        _check(self, lambda v: 0 <= v <= 1, "jitter_probability grey_probability", "a probability in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """What classifier and segmenter training have in common."""

    section: ClassVar[str] = "training"

    backbone: str = "tf_efficientnet_lite0"
    """A timm name, or resnet_small (ours, for small images and training from scratch)."""
    pretrained: bool = True
    """Start from ImageNet weights. tf_efficientnet_lite0's come with a package, others through timm."""
    backbone_checkpoint: str | None = None
    """ImageNet weights for the backbone from a file (safetensors, or a PyTorch state dict)."""
    output_stride: Literal[4, 8, 16, 32] = 16
    """Pixels of the image per cell of the class maps (paper: 8; 16 is what a CPU bears)."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """SGD for the paper's recipes, AdamW for small nets from scratch."""
    lr: float = 0.02
    """Learning rate of the first iteration after the ramp (code)."""
    momentum: float = 0.0
    """Of SGD. 0 because the released code passed its weight decay in momentum's place."""
    weight_decay: float = 5e-4
    """L2 (SGD) or decoupled (AdamW) weight decay (code)."""
    lr_warmup_iters: int = 0
    """Iterations over which the learning rate ramps up linearly."""
    batch_size: int = 8
    """Images per iteration over all workers (supplement)."""
    max_iters: int = 52_880
    """Iterations (code: 40 epochs of VOC trainaug)."""
    poly_power: float = 0.9
    """lr falls as (1 - iteration / max_iters) ** poly_power (code)."""
    freeze_norm: bool = True
    """Batch norm keeps its running statistics and gets no gradient (code)."""
    freeze_stages: int = 1
    """Leading stages of the backbone, after the stem, kept as they are; 0 trains stem and all (code: 1)."""
    seed: int = 0
    """Of weights, order and augmentation."""
    checkpoint_every: int = 1_000
    """Iterations between checkpoints."""
    log_every: int = 20
    """Iterations between reports."""
    loader_workers: int = 2
    """Processes per worker that decode images ahead of the step; 0 decodes in the step."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_choices(self)
        _check(self, lambda v: v > 0, "lr poly_power", "more than 0")
        _check(self, lambda v: v >= 1, "batch_size max_iters checkpoint_every log_every", "at least 1")
        at_least_0 = "momentum weight_decay lr_warmup_iters loader_workers freeze_stages seed"
        _check(self, lambda v: v >= 0, at_least_0, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig(OptimConfig):
    """The classifier whose class maps are the CAMs."""

    section: ClassVar[str] = "classifier"

    feature_dim: int = 256
    """Channels D of the features under the class maps."""
    loss_weights: LossWeights = field(default_factory=LossWeights)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterConfig(OptimConfig):
    """DeepLabV3 on the pseudo labels (supplement: batch 8, lr 5e-4, weight decay 1e-5, 30 epochs)."""

    section: ClassVar[str] = "segmenter"

    lr: float = 5e-4
    weight_decay: float = 1e-5
    momentum: float = 0.9
    """Of SGD."""
    max_iters: int = 39_682
    """Iterations (supplement: 30 epochs of VOC trainaug)."""
    freeze_stages: int = 0
    aspp_dim: int = 256
    """Channels of the atrous spatial pyramid."""
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    """Dilation of its branches, in cells of the feature map (DeepLabV3 at output stride 16)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig(PromptingConfig):
    """Pseudo labels for a whole data set."""

    section: ClassVar[str] = "label"

    flip: bool = True
    """Add the class maps of the mirrored image at every scale."""
    max_side_px: int = 1024
    """Images with a longer side are labelled at this size and the label is scaled back up."""
    batch_size: int = 32
    """Images whose prompt sets are decoded together; their CAMs are in memory at a time."""
    cam_batch_size: int = 16
    """Images (of one size) per pass of the classifier."""

    def __post_init__(self) -> None:
        PromptingConfig.__post_init__(self)
        _check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")
        _check(self, lambda v: v >= 1, "batch_size cam_batch_size", "at least 1 image")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """The cache of SAM's image embeddings."""

    section: ClassVar[str] = "embed"

    dtype: Literal["fp16", "int8"] = "fp16"
    """How embeddings are stored; int8, with a scale per channel, takes half the space."""

    def __post_init__(self) -> None:
        _check_choices(self)


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
        _check_choices(self)
        _check(self, lambda v: v >= 1, "points_per_side", "at least 1 point")
        shares = "pred_iou_thresh stability_score_thresh box_nms_thresh"
        _check(self, lambda v: 0 <= v <= 1, shares, "a share in [0, 1]")
        _check(self, lambda v: v >= 0, "stability_score_offset", "0 or more")
        _check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How CAMs are turned into label maps for their mIoU."""

    section: ClassVar[str] = "evaluate"

    cam_threshold: float = 0.3
    """Fixed background threshold in [0, 1]; the best of a sweep is reported beside it."""

    def __post_init__(self) -> None:
        _check(self, lambda v: 0 <= v <= 1, "cam_threshold", "a CAM value in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All hyper-parameters of a pipeline; its keys (``cpm.tau``) are those of CLI, Tune and tests."""

    sam: SamConfig = field(default_factory=SamConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cpm: CpmConfig = field(default_factory=CpmConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
