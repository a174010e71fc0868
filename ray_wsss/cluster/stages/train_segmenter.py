"""Training of the segmenter on Ray Train."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_wsss.cluster.workers import fit
from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.data.reader import ShardReader, folders_of
from ray_wsss.runs.curation.masks import HandMasks, hand_masks_settings, open_hand_masks
from ray_wsss.runs.curation.review import Review, read_review
from ray_wsss.runs.dependencies import (
    check_validation,
    dataset_settings,
    label_settings,
    settings_of,
    warn_of_near_duplicates,
    with_absolute_paths,
)
from ray_wsss.runs.manifest import Output
from ray_wsss.training.length import resolve_epochs
from ray_wsss.training.loop import Session, share_of_batch
from ray_wsss.training.segmenter import labelled_rows, train_segmenter

log = logging.getLogger(__name__)


def run_train_segmenter(
    recipe: Recipe,
    *,
    dataset: Path,
    labels: Path | Sequence[Path],
    out: Path,
    workers: Workers,
    cluster: Cluster,
    corrections: Path | None = None,
    review: Path | None = None,
    validation: Path | None = None,
    limit: ErrorLimit | None = None,
    overwrite: bool | None = None,
) -> None:
    """Train a segmenter on pseudo labels of ``dataset``.

    Args:
        labels: output of label, or several that are read as one, such as those of a data set's slices.
        corrections: data set with masks, which replace the pseudo labels of their images.
        review: file with verdicts (`runs.curation.review`); rejected pseudo labels are left out.
        validation: data set with ground truth, on which the segmenter is measured during training. It only
            decides which network is kept as the best, beside the last one.
        limit: as for `run_train_classifier`.

    Raises:
        UserError: as `run_train_classifier`, `label_settings`, `open_hand_masks` and `read_review`.
    """
    folders = folders_of(labels)
    noted = label_settings(folders, dataset)
    recipe = with_absolute_paths(recipe)
    inputs: dict[str, Any] = dataset_settings(dataset) | noted
    share_of_batch(recipe.segmenter, max(1, workers.workers), "segmenter")
    masks = open_hand_masks("--corrections", corrections, dataset) if corrections is not None else None
    verdicts = _read_review(review, dataset, masks) if review is not None else None
    inputs |= hand_masks_settings("corrections", corrections) | (verdicts.settings() if verdicts else {})
    if corrections is None:
        recipe = replace(recipe, segmenter=replace(recipe.segmenter, correction_weight=1.0))
    rejected = verdicts.rejected if verdicts is not None else frozenset[str]()
    chosen: Any = {"corrections": masks, "rejected": rejected}
    images = len(labelled_rows(dataset, folders, recipe.segmenter.batch_size, tell=True, **chosen))
    recipe = resolve_epochs(recipe, "segmenter", images)
    output = Output(out, "train-segmenter", settings_of(recipe, "segmenter") | inputs)
    check_validation(validation, dataset)
    if output.begin(overwrite=overwrite) == "finished":
        output.log_finished(overwrite)
        return
    warn_of_near_duplicates(validation, dataset)

    source, targets = dataset.absolute(), [folder.absolute() for folder in folders]
    measured = validation.absolute() if validation is not None else None

    def loop(session: Session) -> None:
        train_segmenter(recipe, source, targets, session, validation=measured, limit=limit, **chosen)

    keep = recipe.segmenter.keep_checkpoints
    fit(loop, out=out, workers=workers, cluster=cluster, keep_checkpoints=keep)
    output.finish()


def _read_review(path: Path, dataset: Path, masks: HandMasks | None) -> Review:
    """Verdicts on the labels of ``dataset``; the log tells how many images they leave out."""
    image_ids = ShardReader(dataset).image_ids
    found = read_review(path, image_ids, dataset)
    corrected = sum(image_id in masks for image_id in found.rejected) if masks is not None else 0
    log.info(found.describe(len(found.rejected) - corrected, len(image_ids)))
    if corrected:
        log.info("%s more rejected images have corrected masks, which are used", f"{corrected:,}")
    return found
