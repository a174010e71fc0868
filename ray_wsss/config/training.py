"""Settings of training."""

from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Literal

from ray_wsss.config.checks import check, check_choices


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Weights of the terms of the classifier's loss."""

    section: ClassVar[str] = "classifier.loss_weights"

    cls: float = 1.0
    """Weight of the classification loss (binary cross-entropy), 0 or more."""
    ssc: float = 1.0
    """Weight of SAM-Segment Contrasting, 0 or more."""
    cpm: float = 1.0
    """Weight of the CAM-based Prompting Module, 0 or more."""

    def __post_init__(self) -> None:
        check(self, lambda v: v >= 0, "cls ssc cpm", "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random geometry and colour of a training crop.

    Code, for the classifier: long side 256 to 512, crop 256, jitter 0.4 0.4 0.4 0.1 of 0.8, grey 0.02.
    """

    section: ClassVar[str] = "augment"

    long_side_px: tuple[int, int] = (256, 512)
    """Range of the random long side of an image, in pixels."""
    crop_px: int = 256
    """Side of the square training crop, in pixels, at least 32."""
    flip: bool = True
    """Mirror half of the crops."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of random changes of brightness, contrast, saturation and hue."""
    jitter_probability: float = 0.8
    """Share of crops with these changes, in [0, 1]."""
    grey_probability: float = 0.02
    """Share of crops that are made grey, in [0, 1]."""

    def __post_init__(self) -> None:
        check(self, lambda v: 0 < v[0] <= v[1], "long_side_px", "two lengths, 0 < least <= most")
        check(self, lambda v: v >= 32, "crop_px", "at least 32 pixels")
        check(self, lambda v: 0 <= v <= 1, "jitter_probability grey_probability", "a probability in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Settings that the training of classifier and segmenter share."""

    section: ClassVar[str] = "training"

    backbone: str = "tf_efficientnet_lite0"
    """Network that makes the features: a timm name, or one of ours.
    resnet_small: for small images and training from scratch; resnet_tiny: the same, with half the stem.
    wide_resnet38: the paper's; needs backbone_checkpoint.
    Two names joined by +: the features of both."""
    pretrained: bool = True
    """Start from ImageNet weights: tf_efficientnet_lite0's come with a package, others through timm."""
    backbone_checkpoint: str | None = None
    """File with ImageNet weights of the backbone (safetensors, or a PyTorch state dict)."""
    output_stride: Literal[4, 8, 14, 16, 32] = 16
    """Image pixels per cell of the class maps (paper: 8; 16 needs a quarter of the work).
    Plain transformers (vit_*, eva*) have their patch: 14 or 16, mostly."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """Optimiser. sgd: for the paper's recipes (code); adamw: for small networks from scratch."""
    lr: float = 0.02
    """Highest learning rate, reached after lr_warmup_iters; above 0 (code: 0.02)."""
    head_lr_factor: float = 1.0
    """Learning rate of the layers outside the backbone, as a multiple of lr; above 0."""
    layer_decay: float = 1.0
    """Learning rate of a stage of the backbone (a block of a plain transformer), as a multiple of the next
    one's; above 0, at most 1. For fine-tuning transformers: 0.65 to 0.9."""
    momentum: float = 0.0
    """Momentum of SGD, 0 or more (code: about 0, since it passes its weight decay as momentum)."""
    weight_decay: float = 5e-4
    """Weight decay, L2 for SGD and decoupled for AdamW; 0 or more (code: 5e-4)."""
    lr_warmup_iters: int = 0
    """Iterations over which the learning rate rises linearly to lr; 0 or more."""
    batch_size: int = 8
    """Images per iteration, over all workers, at least 1 (supplement: 8)."""
    max_iters: int = 52_880
    """Iterations of the whole training, at least 1 (code: 40 epochs of VOC trainaug).
    Epochs, which the preset photos has, decide instead; giving this flag unsets the preset's epochs.
    With text_head, 0 leaves the classifier as CLIP's texts make it."""
    epochs: float | None = None
    """Length of the training in epochs of the images that it uses, above 0.
    If given, it decides max_iters. Giving this flag sets min_iters to 0."""
    min_iters: int = 0
    """Fewest iterations that epochs become, so that few images train long enough; 0: no minimum.
    CPM's warm-up in epochs is lengthened in proportion."""
    poly_power: float = 0.9
    """Exponent of the schedule lr * (1 - iteration / max_iters) ** poly_power, above 0 (code: 0.9)."""
    freeze_norm: bool = True
    """Keep the running statistics of batch norm, and train none of its weights (code: true)."""
    freeze_stages: int | Literal["all"] = 1
    """First stages of the backbone (blocks of a plain transformer) that are not trained, nor is the stem.
    0 trains everything (code: 1). all: trains nothing of the backbone, and computes it without gradients,
    in bf16 where the hardware does."""
    seed: int = 0
    """Seed of weights, order and augmentation, 0 or more."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the networks. bf16: mixed precision.
    Weights, class maps, logits, CAMs, losses and SAM's decoder are fp32 in either case."""
    compile: bool = False
    """Make the backbone faster with torch.compile, which takes a minute or more at the start."""
    accumulate: int = 1
    """Passes in which a worker computes its share of the batch, at least 1.
    More passes need less memory; with freeze_norm the gradient is the same."""
    checkpoint_every: int = 1_000
    """Iterations between checkpoints, at least 1."""
    keep_checkpoints: int = 2
    """Number of last checkpoints to keep, at least 1. With --validation the best network is kept too."""
    log_every: int = 20
    """Iterations between lines of the log, at least 1."""
    validate_every: int = 2_000
    """Iterations between validations, and between pictures in TensorBoard; at least 1."""
    validate_images: int = 200
    """Images to validate on, evenly spread over the validation data set; at least 1."""
    loader_workers: int = 2
    """Processes per worker that decode images in advance; 0 decodes them in the training process."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: v is None or 0 < v < inf, "epochs", "a number above 0")
        check(self, lambda v: v > 0, "lr head_lr_factor poly_power", "more than 0")
        at_least_1 = "batch_size accumulate checkpoint_every keep_checkpoints log_every"
        check(self, lambda v: v >= 1, f"{at_least_1} validate_every validate_images", "at least 1")
        check(self, lambda v: 0 < v <= 1, "layer_decay", "above 0, at most 1")
        check(self, lambda v: v == "all" or v >= 0, "freeze_stages", "0 or more, or all")
        at_least_0 = "max_iters min_iters momentum weight_decay lr_warmup_iters loader_workers seed"
        check(self, lambda v: v >= 0, at_least_0, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig(OptimConfig):
    """How the classifier, whose class maps are the CAMs, is trained."""

    section: ClassVar[str] = "classifier"

    layers: tuple[int, ...] = (-1,)
    """Layers of the backbone whose features the class maps are made of: blocks of a plain transformer, else
    stages; -1 is the last. Features of several are concatenated; they get the size of output_stride."""
    feature_dim: int = 256
    """Channels of the features that the class maps are made of."""
    text_head: str | None = None
    """CLIP whose texts are the start of the class maps, so that CAMs exist before any training
    (pip install -e ".[clip]"): MODEL/WEIGHTS of open_clip such as ViT-B-16-quickgelu/openai,
    hf-hub:OWNER/NAME, or a folder. The backbone is its image transformer, such as
    vit_base_patch16_clip_quickgelu_224, with its weights; feature_dim is CLIP's."""
    class_words: str | None = None
    """JSON file with words of classes, words of the background and templates for text_head; without it the
    class names (docs/text_head.md)."""
    ssc_temperature: float = 1.0
    """Divisor of the similarities in SSC, above 0 (paper: 1)."""
    loss_weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)
        check(self, lambda v: v > 0, "ssc_temperature", "more than 0")
        check(self, lambda v: len(v) > 0, "layers", "one layer or more, such as -1")
        if self.text_head is None:
            check(self, lambda v: v >= 1, "max_iters", "at least 1 without classifier.text_head")
            check(self, lambda v: v is None, "class_words", "None without classifier.text_head")
        else:
            check(self, lambda v: v is None, "backbone_checkpoint", "None with classifier.text_head")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig:
    """Which feature maps of a frozen backbone are stored, and how."""

    section: ClassVar[str] = "features"

    sides_px: tuple[int, ...] = ()
    """Long sides at which the backbone sees an image, in pixels, each at least 32; a map is stored for each.
    A training crop is cut from the map whose side is nearest to the crop's own scale.
    Without any: classifier.augment's largest, at which labelling shows images too."""
    flip: bool = False
    """Also store the maps of the mirrored image. Without them, a mirrored crop mirrors the map."""
    dtype: Literal["fp16", "int8"] = "fp16"
    """Type of the stored values. int8, with a scale per channel, takes half the space of fp16."""

    def __post_init__(self) -> None:
        check_choices(self)
        sides = "sides of at least 32 pixels"
        check(self, lambda v: not v or min(v) >= 32, "sides_px", sides)


def _segmenter_crops() -> AugmentConfig:
    """The released code's recipe for segmentation: larger crops and weaker jitter than the classifier's."""
    return AugmentConfig(long_side_px=(256, 768), crop_px=384, jitter=(0.3, 0.3, 0.3, 0.1))


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterConfig(OptimConfig):
    """How the segmenter is trained on the pseudo labels.

    Supplement: batch size 8, lr 5e-4, weight decay 1e-5, 30 epochs.
    """

    section: ClassVar[str] = "segmenter"

    architecture: Literal["deeplabv3", "deeplabv3plus", "upernet", "segformer", "unet", "dpt"] = "deeplabv3"
    """Decoder, on any backbone (paper: deeplabv3, which takes every output_stride).
    deeplabv3plus: output_stride 8 or 16.
    upernet, segformer, unet: output_stride 32, and feature maps of several strides.
    dpt: plain transformers."""
    lr: float = 5e-4
    """Highest learning rate, reached after lr_warmup_iters; above 0 (supplement: 5e-4)."""
    head_lr_factor: float = 10.0
    """Learning rate of the layers outside the backbone, as a multiple of lr; above 0 (code: 10)."""
    weight_decay: float = 1e-5
    """Weight decay, L2 for SGD and decoupled for AdamW; 0 or more (supplement: 1e-5)."""
    momentum: float = 0.9
    """Momentum of SGD, 0 or more."""
    max_iters: int = 39_682
    """Iterations of the whole training, at least 1 (supplement: 30 epochs of VOC trainaug).
    Epochs, which the preset photos has, decide instead; giving this flag unsets the preset's epochs."""
    freeze_stages: int | Literal["all"] = 0
    """First stages of the backbone (blocks of a plain transformer) that are not trained, nor is the stem.
    0 trains everything. all: trains nothing of the backbone, and computes it without gradients."""
    aspp_dim: int = 256
    """Channels of the decoder: of DeepLab's atrous spatial pyramid pooling, or what the others have."""
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    """Three dilations of DeepLab's branches, in cells of the feature map (DeepLabV3: 6, 12, 18 at
    stride 16)."""
    correction_weight: float = 1.0
    """Weight of the pixels of an image with a corrected mask (--corrections); others have 1. More than 0."""
    weigh_by: Literal["none", "score"] = "none"
    """Weight of a pixel in the loss. score: that of its mask, SAM's predicted IoU times the CAM's mean in the
    mask; background and corrected masks have 1."""
    ignore_rim_px: int = 0
    """Pixels on both sides of a border between labels that are not learned from, in pixels of the crop; 0 or
    more."""
    augment: AugmentConfig = field(default_factory=_segmenter_crops)

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)
        check(self, lambda v: v >= 1, "max_iters", "at least 1")
        check(self, lambda v: 0 < v < inf, "correction_weight", "more than 0")
        check(self, lambda v: len(v) == 3, "atrous_rates", "three dilations")
        check(self, lambda v: v >= 0, "ignore_rim_px", "0 or more pixels")
