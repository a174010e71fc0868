"""Settings of SAM, of its prompts, and of the stages that run it."""

from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import ClassVar, Literal

from ray_wsss.config.checks import check, check_choices, check_tiles, overlap_of_tiles
from ray_wsss.config.promptable import MODELS, ModelCard, SamName
from ray_wsss.errors import UserError

ObjectMask = Literal["auto", "single", "best_iou", "whole"]
ObjectPrompts = Literal["all", "boxes", "points"]
PromptsFrom = Literal["cams", "annotations", "both"]
"""Origin of SAM's prompts: peaks of CAMs, annotated objects, or objects if an image has any, else CAMs."""
EncoderPrecision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamConfig:
    """Which Segment Anything Model, or model of its kind."""

    section: ClassVar[str] = "sam"

    name: Literal["auto", SamName] = "auto"
    """Model.
    auto: vit_h where SAM's actors (or a training's workers) have GPUs, lite on CPUs. With --embeddings their
    model. A resumed run keeps the model it began with.
    lite: ships with the package, for photographs on a CPU (sources of its training in docs/lite_sam.md).
    tiny: ships with the package, knows generated scenes only (Apache-2.0).
    vit_b, vit_l, vit_h: Meta's SAM (Apache-2.0).
    mobile_sam: MobileSAM (Apache-2.0), which needs sam.checkpoint.
    Through transformers (pip install -e ".[sam2]"), from the Hugging Face hub or a folder in sam.checkpoint:
    sam2.1_tiny, _small, _base_plus, _large: Meta's SAM 2.1 (Apache-2.0); edgetam: EdgeTAM (Apache-2.0);
    hq_vit_b, hq_vit_l, hq_vit_h: HQ-SAM (Apache-2.0); sam3_tracker: SAM 3 (SAM License, on request)."""
    checkpoint: str | None = None
    """Path of the weights: a file, or for models through transformers a folder with *.safetensors.
    Without it, they are downloaded once; Meta's files of SAM are checked by SHA-256."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of the image encoder; its embeddings are float32.
    auto: bf16 on GPUs from compute capability 8.0 and on CPUs with AVX512-BF16 or AMX, else fp32.
    On GPUs a resumed run keeps the precision it began with, else the oldest GPU of the cluster decides."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compilation of the image encoder by torch.compile, which makes it faster after about 20 s at the start.
    auto: on if there are enough images to gain from it. Only tiny and vit_* can be compiled."""
    encode_batch_size: int = 8
    """Images per forward pass of the image encoder, at least 1.
    A GPU with 16 GiB has room for 8 with vit_h in bf16 and fp16, for 4 in fp32 and tf32."""
    decode_batch_size: int = 32
    """Prompt sets, of any images and classes, per forward pass of the mask decoder, at least 1."""

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: v >= 1, "encode_batch_size decode_batch_size", "at least 1")
        if self.name != "auto" and not self.card.can_compile:
            check(self, lambda v: v != "on", "compile", f"auto or off, since {self.name} can't be compiled")

    @property
    def card(self) -> ModelCard:
        """Facts about the model. Raises KeyError for auto, which must be settled first."""
        return MODELS[self.settled_name]

    @property
    def settled_name(self) -> SamName:
        """The name of a model. Raises KeyError for auto, which must be settled first."""
        if self.name == "auto":
            raise KeyError("sam.name is auto, which is no model yet")
        return self.name

    @property
    def has_whole(self) -> bool:
        """Whether one of the model's mask outputs is known to be the whole object; both of auto's have it."""
        return self.name == "auto" or self.card.has_whole

    def on(self, device: str) -> "SamConfig":
        """These settings with a model instead of auto, that suits a type of torch device.

        Raises:
            UserError: there is a checkpoint, but auto doesn't tell whose weights it holds.
        """
        if self.name != "auto":
            return self
        if self.checkpoint is not None:
            raise UserError(
                f"sam.checkpoint is {self.checkpoint}, but sam.name is auto; expected the name of the model "
                "whose weights these are, such as sam.name=vit_h"
            )
        return replace(self, name="vit_h" if device == "cuda" else "lite")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptingConfig:
    """From CAM to pseudo label: peaks, point prompts, SAM masks, aggregation."""

    section: ClassVar[str] = "prompting"

    tau: float = 0.5
    """CAM value above which a peak becomes a prompt, in [0, 1] (paper: 0.5; 0.4 to 0.7 score alike)."""
    min_distance_px: int = 10
    """Smallest distance between two peaks, and of a peak to the border, in pixels (paper: d = 10)."""
    keep_global_max: Literal["always", "if_empty", "never"] = "if_empty"
    """Whether the global maximum of a class that is present also becomes a prompt (code: always).
    if_empty: only for a class without peaks."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Image scales whose class maps are summed into the CAM, each in (0, 4]."""
    affinity_steps: int = 0
    """Steps of a random walk that spreads class maps to cells with like features of the backbone; 0: none."""
    affinity_power: float = 4.0
    """Sharpness of the affinity, the cosine of two cells' features to this power; above 0."""
    colour_steps: int = 0
    """Steps that pull class maps to edges of colour (PAMR), at a quarter of the image's size; 0: none."""
    mask_output: Literal["auto", "whole", "best_iou"] = "auto"
    """Which of SAM's three masks is taken.
    auto: whole if the model has such an output, else best_iou (SAM 2.1, EdgeTAM, SAM 3).
    whole: the one for the whole object, output 3 (code: index 2 of outputs 1 to 3).
    best_iou: the one with the highest predicted IoU."""
    mask_threshold: float = 0.0
    """Logit of SAM above which a pixel is in a mask (code: 0). Lower values make masks larger.
    With lite they helped where CAMs were poor, and harmed where CAMs were good."""
    confidence: Literal["logit", "stability", "iou"] = "logit"
    """Weight of a mask where classes compete for pixels.
    logit: its logit at each pixel, counted from mask_threshold (code);
    stability: its stability score (paper); iou: its predicted IoU."""

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: 0 <= v <= 1, "tau", "a CAM value in [0, 1]")
        check(self, lambda v: v >= 1, "min_distance_px", "at least 1 pixel")
        check(self, lambda v: v and all(0 < s <= 4 for s in v), "scales", "one or more scales in (0, 4]")
        check(self, lambda v: v >= 0, "affinity_steps colour_steps", "0 or more steps")
        check(self, lambda v: 0 < v < inf, "affinity_power", "a number above 0")
        check(self, isfinite, "mask_threshold", "a finite logit")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpmConfig(PromptingConfig):
    """CAM-based Prompting Module: SAM's masks supervise the CAM while the classifier trains."""

    section: ClassVar[str] = "cpm"

    enabled: bool = True
    """Whether SAM's masks supervise the CAMs. Without it this is a plain classifier."""
    view: Literal["crop", "image"] = "crop"
    """What SAM encodes. crop: every training crop (code).
    image: each whole image once; --embeddings has the result."""
    warmup_iters: int = 2_644
    """Iterations before CPM starts, 0 or more (code: 2 epochs of VOC trainaug, batch size 8).
    Epochs, which the preset photos has, decide instead; giving this flag unsets the preset's epochs."""
    warmup_epochs: float | None = None
    """Epochs of the classifier's images before CPM starts, 0 or more.
    If given, they decide warmup_iters."""
    temperature: float = 1.0
    """Divisor of the CAM in CPM's cross-entropy, above 0 (code: 1).
    With lower values small objects are learned faster."""
    reuse_pass: bool = False
    """With scales 1, make the CAM that prompts SAM from the features of the training pass, not of one more
    in eval mode. Where norms are frozen and nothing is dropped out, the CAM is the same."""

    @property
    def reuses_pass(self) -> bool:
        """True if the training pass gives the CAM that prompts SAM."""
        return self.reuse_pass and self.scales == (1.0,)

    @property
    def encodes(self) -> bool:
        """True if training runs SAM's image encoder."""
        return self.enabled and self.view == "crop"

    @property
    def reads_embeddings(self) -> bool:
        """True if training reads SAM's embeddings of whole images."""
        return self.enabled and self.view == "image"

    def __post_init__(self) -> None:
        PromptingConfig.__post_init__(self)
        check(self, lambda v: v >= 0, "warmup_iters", "0 or more iterations")
        check(self, lambda v: v is None or 0 <= v < inf, "warmup_epochs", "0 or more epochs")
        check(self, lambda v: v > 0, "temperature", "more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig(PromptingConfig):
    """How pseudo labels are made."""

    section: ClassVar[str] = "label"

    prompts: Literal["points", "box", "boxes", "mask"] = "points"
    """Kind of prompt for a class. points: all of its peaks (paper).
    The others are made of the region above tau around the peaks:
    box: one box around it; boxes: a box for each peak's part of it; mask: the region itself."""
    object_prompts: ObjectPrompts = "all"
    """What of an annotated object prompts SAM, with --prompts-from annotations or both.
    all: its box and its points together; boxes: its box alone; points: its points alone.
    An object that lacks what is asked for is prompted with what it has."""
    object_mask: ObjectMask = "auto"
    """Which of SAM's masks an annotated object gets. single: output 0, for prompts that leave no doubt.
    best_iou: of the three others the one with the highest predicted IoU; whole: output 3.
    auto: best_iou for a lone point, else single, as segment_anything advises."""
    flip: bool = True
    """Add the class maps of the mirrored image at every scale; doubles the work."""
    max_side_px: int = 1024
    """Longest side at which an image is labelled, in pixels, at least 32.
    Larger images are scaled down, and their labels scaled back up.
    Masks of annotated objects always have the size of their image."""
    classifier_side_px: int | None = None
    """Longest side at which the classifier sees an image, in pixels, at least 32; scales multiply it.
    Larger images are scaled down for it alone; CAMs, SAM and masks keep the size of max_side_px.
    None: the largest long side that the classifier was trained with."""
    tile_px: int | None = None
    """Side of the tiles in which larger images are labelled, in pixels: a multiple of 4, at least 64.
    No image is scaled down then. Choose about the size of the images that the classifier was trained with.
    None: no tiles. The CAMs of evaluate are made without tiles."""
    tile_overlap: int | None = None
    """Pixels that neighbouring tiles share, from 8 to half of tile_px. None: an eighth of tile_px.
    Objects larger than this are labelled whole too: their masks are carried from tile to tile."""
    batch_size: int = 32
    """Images whose prompt sets are decoded together, at least 1; their CAMs share the memory."""
    cam_batch_size: int = 8
    """Images of one size per forward pass of the classifier, at least 1."""
    max_pixels_per_pass: int = 8_000_000
    """Pixels that the classifier sees in one forward pass, at the largest scale, at least 1.
    It limits memory: larger images go in smaller batches. The default fits a GPU with 16 GiB."""

    def __post_init__(self) -> None:
        PromptingConfig.__post_init__(self)
        check(self, lambda v: v >= 1, "max_pixels_per_pass", "at least 1 pixel")
        check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")
        check(self, lambda v: v is None or v >= 32, "classifier_side_px", "at least 32 pixels, or None")
        check(self, lambda v: v >= 1, "batch_size cam_batch_size", "at least 1 image")
        check_tiles(self)

    @property
    def tile_overlap_px(self) -> int:
        """Pixels that neighbouring tiles share; 0 without tiles."""
        return overlap_of_tiles(self)

    @property
    def max_map_pixels(self) -> int:
        """Pixels of the maps of (image, class) pairs that are computed at a time, about 40 bytes each."""
        return 2 * self.max_pixels_per_pass

    @property
    def max_batch_pixels(self) -> float:
        """Pixels of the images of one forward pass, at their own scale."""
        return self.max_pixels_per_pass / max(1.0, *self.scales) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """How SAM's image embeddings are stored."""

    section: ClassVar[str] = "embed"

    dtype: Literal["fp16", "int8"] = "fp16"
    """Type of the stored values. int8, with a scale per channel, takes half the space of fp16."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentsConfig:
    """How SAM segments everything; names and defaults are those of SamAutomaticMaskGenerator."""

    section: ClassVar[str] = "segments"

    points_per_side: int = 32
    """Rows and columns of the grid of point prompts, at least 1."""
    pred_iou_thresh: float | None = None
    """Predicted IoU that a mask must exceed to be kept, in [0, 1]. None: what suits the model.
    That is 0.88 for SAM, and 0.4 for lite, whose predictions are lower."""
    stability_score_thresh: float | None = None
    """Stability score that a mask must reach to be kept, in [0, 1]. None: what suits the model.
    That is 0.95 for SAM, and 0.1 for lite, whose borders are soft."""
    stability_score_offset: float = 1.0
    """Shift of the mask threshold, in logits, that the stability score is measured with; 0 or more."""
    box_nms_thresh: float = 0.7
    """IoU of two boxes, in [0, 1], above which the mask with the lower predicted IoU is dropped."""
    overlap: Literal["smallest_area", "highest_iou"] = "smallest_area"
    """Which mask gets a pixel that several cover.
    smallest_area: the smallest (paper); highest_iou: the one with the highest predicted IoU (code)."""
    max_side_px: int = 1024
    """Longest side at which an image is segmented, in pixels, at least 32.
    Larger images are scaled down, and their maps scaled back up."""
    max_pixels_per_pass: int = 64_000_000
    """Pixels of masks at that size in memory at a time, at least 1, about 14 bytes each; a CPU takes fewer.
    It limits memory. The default fits a GPU with 16 GiB."""

    def __post_init__(self) -> None:
        check_choices(self)
        check(self, lambda v: v >= 1, "points_per_side", "at least 1 point")
        shares = "pred_iou_thresh stability_score_thresh box_nms_thresh"
        check(self, lambda v: v is None or 0 <= v <= 1, shares, "a share in [0, 1]")
        check(self, lambda v: v >= 0, "stability_score_offset", "0 or more")
        check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")
        check(self, lambda v: v >= 1, "max_pixels_per_pass", "at least 1 pixel")

    def suiting(self, card: ModelCard) -> "SegmentsConfig":
        """These settings with a model's own thresholds instead of None."""
        iou, stability = self.pred_iou_thresh, self.stability_score_thresh
        return replace(
            self,
            pred_iou_thresh=card.pred_iou_thresh if iou is None else iou,
            stability_score_thresh=card.stability_score_thresh if stability is None else stability,
        )

    @property
    def thresholds(self) -> tuple[float, float]:
        """Thresholds of predicted IoU and of stability. Raises ValueError before `suiting` has set them."""
        if self.pred_iou_thresh is None or self.stability_score_thresh is None:
            raise ValueError("the thresholds depend on the model; expected the result of suiting()")
        return self.pred_iou_thresh, self.stability_score_thresh
