"""All settings together."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ray_wsss.config.checks import check
from ray_wsss.config.predict import PredictConfig
from ray_wsss.config.sam import (
    CpmConfig,
    EmbedConfig,
    LabelConfig,
    PromptingConfig,
    SamConfig,
    SegmentsConfig,
)
from ray_wsss.config.training import ClassifierConfig, SegmenterConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How the mIoU of CAMs is measured."""

    section: ClassVar[str] = "evaluate"

    cam_threshold: float | None = None
    """CAM value up to which a pixel counts as background, in [0, 1]. With the preset photos: 0.3.
    None: 0.5 for a classifier trained with CPM, where CPM's loss separates objects from background, else 0.3.
    The best threshold of a sweep is reported as well."""

    def __post_init__(self) -> None:
        check(self, lambda v: v is None or 0 <= v <= 1, "cam_threshold", "a CAM value in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All settings of a pipeline. Command line, sweeps and tests use the same keys, such as ``cpm.tau``."""

    sam: SamConfig = field(default_factory=SamConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cpm: CpmConfig = field(default_factory=CpmConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if self.sam.has_whole:
            return
        expected = f"auto or best_iou, since no mask of {self.sam.name} is known to be the whole object"
        check(self.cpm, lambda v: v != "whole", "mask_output", expected)
        check(self.label, lambda v: v != "whole", "mask_output object_mask", expected)

    def mask_output(self, config: PromptingConfig) -> Literal["whole", "best_iou"]:
        """Which mask is taken from SAM: "auto" of ``config``, settled by the model."""
        if config.mask_output == "auto":
            return "whole" if self.sam.has_whole else "best_iou"
        return config.mask_output
