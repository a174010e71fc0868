"""Every setting of the pipeline: frozen, validated dataclasses.

The defaults are the paper's VOC recipe. Values marked (code) are those of the released S2C code,
(supplement) those of the paper's supplement, where the two differ the comment says which is used.
"""

from ray_wsss.config.predict import PredictConfig
from ray_wsss.config.recipe import EvaluateConfig, Recipe
from ray_wsss.config.sam import (
    CpmConfig,
    EmbedConfig,
    EncoderPrecision,
    LabelConfig,
    PromptingConfig,
    SamConfig,
    SamName,
    SegmentsConfig,
)
from ray_wsss.config.training import (
    AugmentConfig,
    ClassifierConfig,
    LossWeights,
    OptimConfig,
    SegmenterConfig,
)

__all__ = [
    "AugmentConfig",
    "ClassifierConfig",
    "CpmConfig",
    "EmbedConfig",
    "EncoderPrecision",
    "EvaluateConfig",
    "LabelConfig",
    "LossWeights",
    "OptimConfig",
    "PredictConfig",
    "PromptingConfig",
    "Recipe",
    "SamConfig",
    "SamName",
    "SegmenterConfig",
    "SegmentsConfig",
]
