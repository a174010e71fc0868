"""All settings together."""

from dataclasses import dataclass, field
from typing import ClassVar

from ray_wsss.config.checks import check
from ray_wsss.config.predict import PredictConfig
from ray_wsss.config.sam import CpmConfig, EmbedConfig, LabelConfig, SamConfig, SegmentsConfig
from ray_wsss.config.training import ClassifierConfig, SegmenterConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How CAMs are turned into label maps for their mIoU."""

    section: ClassVar[str] = "evaluate"

    cam_threshold: float = 0.3
    """Fixed background threshold in [0, 1]; the best of a sweep is reported beside it."""

    def __post_init__(self) -> None:
        check(self, lambda v: 0 <= v <= 1, "cam_threshold", "a CAM value in [0, 1]")


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
    predict: PredictConfig = field(default_factory=PredictConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
