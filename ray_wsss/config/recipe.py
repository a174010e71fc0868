"""All settings together."""

from dataclasses import dataclass, field
from typing import ClassVar

from ray_wsss.config.checks import check
from ray_wsss.config.predict import PredictConfig
from ray_wsss.config.sam import CpmConfig, EmbedConfig, LabelConfig, SamConfig, SegmentsConfig
from ray_wsss.config.training import ClassifierConfig, SegmenterConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How the mIoU of CAMs is measured."""

    section: ClassVar[str] = "evaluate"

    cam_threshold: float | None = None
    """CAM value up to which a pixel counts as background, in [0, 1].
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
