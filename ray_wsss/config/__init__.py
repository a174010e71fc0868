"""Every setting of the pipeline: frozen, validated dataclasses.

The defaults are the paper's VOC recipe. A value marked (paper) comes from the paper, (supplement) from its
supplement, (code) from the released S2C code.

The docstring of a field is its help on the command line: first what the value is, then its range, then its
source. A second sentence starts a line of its own, since the help keeps line breaks.
"""

from ray_wsss.config.predict import PredictConfig
from ray_wsss.config.promptable import SamName
from ray_wsss.config.recipe import EvaluateConfig, Recipe
from ray_wsss.config.sam import (
    CpmConfig,
    EmbedConfig,
    EncoderPrecision,
    LabelConfig,
    PromptingConfig,
    SamConfig,
    SegmentsConfig,
)
from ray_wsss.config.training import (
    AugmentConfig,
    ClassifierConfig,
    FeaturesConfig,
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
    "FeaturesConfig",
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
