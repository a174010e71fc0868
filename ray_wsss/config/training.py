"""Settings of training."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ray_wsss.config.checks import check, check_choices


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
        check(self, lambda v: v >= 0, "cls ssc cpm", "0 or more")


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
        check(self, lambda v: 0 < v[0] <= v[1], "long_side_px", "two lengths, 0 < least <= most")
        check(self, lambda v: v >= 32, "crop_px", "at least 32 pixels")
        check(self, lambda v: 0 <= v <= 1, "jitter_probability grey_probability", "a probability in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """What classifier and segmenter training have in common."""

    section: ClassVar[str] = "training"

    backbone: str = "tf_efficientnet_lite0"
    """A timm name, resnet_small (ours, for small images and training from scratch), or wide_resnet38 (the
    paper's; it needs backbone_checkpoint)."""
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
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the networks compute in mixed precision; weights, CAMs, losses and SAM's decoder stay in fp32."""
    compile: bool = False
    """Compile the backbone (torch.compile): a minute or more at first, then faster steps."""
    accumulate: int = 1
    """Passes a worker takes for its share of the batch: less memory, the same gradient with frozen norms."""
    checkpoint_every: int = 1_000
    """Iterations between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints stay, besides the best of a run with validation."""
    log_every: int = 20
    """Iterations between reports."""
    validate_every: int = 2_000
    """Iterations between validations, and between pictures in TensorBoard."""
    validate_images: int = 200
    """How many images of the validation data set are looked at, evenly spread over it."""
    loader_workers: int = 2
    """Processes per worker that decode images ahead of the step; 0 decodes in the step."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: v > 0, "lr poly_power", "more than 0")
        at_least_1 = "batch_size max_iters accumulate checkpoint_every keep_checkpoints log_every"
        check(self, lambda v: v >= 1, f"{at_least_1} validate_every validate_images", "at least 1")
        at_least_0 = "momentum weight_decay lr_warmup_iters loader_workers freeze_stages seed"
        check(self, lambda v: v >= 0, at_least_0, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig(OptimConfig):
    """The classifier whose class maps are the CAMs."""

    section: ClassVar[str] = "classifier"

    feature_dim: int = 256
    """Channels D of the features under the class maps."""
    ssc_temperature: float = 1.0
    """Divides the similarities of SSC (paper: 1)."""
    loss_weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)
        check(self, lambda v: v > 0, "ssc_temperature", "more than 0")


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
