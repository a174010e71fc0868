"""Stored features as an input of training: whose they are, and whether the training can use them."""

from pathlib import Path
from typing import Any

from torch import nn

from ray_wsss.config import ClassifierConfig, FeaturesConfig, Recipe
from ray_wsss.data.features import FeatureViews
from ray_wsss.errors import UserError
from ray_wsss.models.first_weights import weights_hash
from ray_wsss.runs.dependencies import dataset_settings
from ray_wsss.runs.manifest import dataset_hash, require_finished

STAGE = "extract-features"
_WEIGHTS = "backbone.sha256"


def backbone_settings(config: ClassifierConfig) -> dict[str, Any]:
    """Settings that name a classifier's backbone and the cells of its feature map."""
    return {
        "classifier.backbone": config.backbone,
        "classifier.output_stride": config.output_stride,
        "classifier.layers": list(config.layers),
        # Beside the weights only its presence counts: CLIP's cells then have the values of its last layer.
        "text_head": config.text_head is not None,
    }


def extraction_settings(
    config: FeaturesConfig, classifier: ClassifierConfig, backbone: nn.Module, dataset: Path
) -> dict[str, Any]:
    """Everything that stored features depend on.

    Args:
        config: which maps, with sides.
        backbone: the classifier's, whose weights count by their content.
    """
    return {
        **backbone_settings(classifier),
        _WEIGHTS: weights_hash(backbone),
        "features.sides_px": list(config.sides_px),
        "features.flip": config.flip,
        "features.dtype": config.dtype,
        **dataset_settings(dataset),
    }


def features_settings(features: Path | None, recipe: Recipe, dataset: Path) -> dict[str, Any]:
    """Settings of the stored features that a classifier is trained on; empty without features.

    Raises:
        UserError: the features are unfinished, are another backbone's or another data set's, or the training
            needs pixels.
    """
    if features is None:
        return {}
    theirs, ours = require_finished(features, STAGE), backbone_settings(recipe.classifier)
    for key, value in ours.items():
        if theirs[key] != value:
            raise UserError(f"{features} holds features with {key} {theirs[key]}; expected {value}")
    if theirs["dataset.sha256"] != dataset_hash(dataset):
        raise UserError(
            f"{features} holds features of {theirs['dataset']}, which is another data set than {dataset} or "
            f"was other then; expected those that 'ray-wsss {STAGE} --dataset {dataset}' makes"
        )
    _check_recipe(recipe)
    return {
        "features.backbone.sha256": theirs[_WEIGHTS],
        **{key: value for key, value in theirs.items() if key.startswith("features.")},
    }


def _check_recipe(recipe: Recipe) -> None:
    """Raise UserError for a training that needs pixels or gradients of the backbone."""
    classifier, cpm = recipe.classifier, recipe.cpm
    if classifier.freeze_stages != "all":
        raise UserError(
            f"classifier.freeze_stages is {classifier.freeze_stages}; expected all with --features, since a "
            "backbone that is trained has other features after each step"
        )
    needs_pixels = {
        "cpm.view": (cpm.view, "image"),
        "cpm.scales": (tuple(cpm.scales), (1.0,)),
        "cpm.colour_steps": (cpm.colour_steps, 0),
    }
    for name, (found, expected) in needs_pixels.items():
        if cpm.enabled and found != expected:
            raise UserError(
                f"{name} is {_words(found)}; expected {_words(expected)} with --features, since training "
                "then reads no pixels"
            )


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_weights(features: Path, backbone: nn.Module) -> None:
    """Raise UserError unless a backbone with these weights made the features."""
    theirs, ours = require_finished(features, STAGE)[_WEIGHTS], weights_hash(backbone)
    if theirs != ours:
        raise UserError(
            f"{features} holds features of a backbone with other weights (SHA-256 {theirs[:12]}, the "
            f"classifier's has {ours[:12]}); expected the same classifier.backbone-checkpoint, pretrained "
            "and seed"
        )


def views_of(features: Path) -> FeatureViews:
    """The views whose maps are stored."""
    noted = require_finished(features, STAGE)
    return FeatureViews(
        folder=features,
        sides_px=noted["features.sides_px"],
        flip=noted["features.flip"],
        stride=noted["classifier.output_stride"],
    )
