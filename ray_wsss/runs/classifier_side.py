"""The long side at which a classifier sees images for CAMs, compared with its training."""

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

from ray_wsss.config import LabelConfig, PromptingConfig
from ray_wsss.runs.manifest import read_manifest

log = logging.getLogger(__name__)

_FAR = 1.5
"""A long side of this many times the largest of training is worth a warning."""
_LARGEST_SCALE = max(PromptingConfig().scales)
"""Largest scale of the released code, which shows training's own sizes enlarged by it; no reason to warn."""


def trained_side_px(classifier: Path) -> int | None:
    """Largest long side of the images that a classifier was trained with, in pixels.

    Args:
        classifier: output of train-classifier.

    Returns:
        None if the folder has no manifest that tells.

    Raises:
        UserError: the manifest is unreadable, or a later version of ray_wsss wrote it.
    """
    manifest = read_manifest(classifier)
    sides = manifest["depends_on"].get("classifier.augment.long_side_px") if manifest is not None else None
    return max(sides) if sides else None


def with_classifier_side(config: LabelConfig, classifier: Path) -> LabelConfig:
    """``config`` with the classifier's largest long side of training, unless it names a side.

    ``classifier_side_px`` stays None, which is no limit, if the folder ``classifier`` doesn't tell the side.
    """
    if config.classifier_side_px is not None:
        return config
    return replace(config, classifier_side_px=trained_side_px(classifier))


def warn_of_large_views(config: LabelConfig, classifier: Path) -> None:
    """Log a warning if the classifier will see images much larger than in its training.

    That is at more than 1.5 times the largest long side of training, or, through a scale, at more than 2
    times: 2 is the largest scale of the released code. A process logs the same warning only once, since one
    run may have several stages that make CAMs.
    """
    trained = trained_side_px(classifier)
    if trained is None:
        return
    side = min(config.classifier_side_px or trained, config.tile_px or config.max_side_px)
    largest = max(config.scales)
    if side > _FAR * trained:
        _warn_once(
            f"label.classifier_side_px is {config.classifier_side_px}: the classifier sees images with a "
            f"long side of {side} px, {side / trained:.3g} times the largest in its training ({trained} px)"
        )
    elif largest * side > _LARGEST_SCALE * trained:
        _warn_once(
            f"label.scales has {largest:g}: the classifier sees images with a long side of "
            f"{round(largest * side)} px, {largest * side / trained:.3g} times the largest in its training "
            f"({trained} px)"
        )


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
