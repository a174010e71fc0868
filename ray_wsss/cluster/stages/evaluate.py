"""Evaluation on Ray: an actor pool counts confusions, and the driver adds them up."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray_wsss.cluster.actors import map_stage
from ray_wsss.cluster.run_chunks import session_of
from ray_wsss.config import Recipe
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.reader import ShardReader, folders_of, named
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.runs.cam_threshold import fixed_threshold, trained_with_cpm
from ray_wsss.runs.classifier_side import warn_of_large_views
from ray_wsss.runs.dependencies import check_classes, dataset_settings, label_settings, warn_of_seen_images
from ray_wsss.runs.read_chunks import IMAGE_COLUMNS
from ray_wsss.stages.evaluate import (
    CamEvaluator,
    Evaluator,
    LabelEvaluator,
    SegmenterEvaluator,
    describe_counts,
)

log = logging.getLogger(__name__)


def run_evaluate(
    recipe: Recipe,
    *,
    dataset: Path,
    classifier: Path | None,
    labels: Path | Sequence[Path] | None,
    segmenter: Path | None,
    resources: Resources,
    cluster: Cluster,
) -> dict[str, Any]:
    """Measure CAMs, pseudo labels and a segmenter against the ground truth of ``dataset``.

    Args:
        classifier, labels, segmenter: outputs to measure; None leaves one out. Several folders of labels are
            measured as one.

    Returns:
        For each measure its ``miou``, ``iou`` by class name (None for a class that never occurs),
        ``confusion`` (pixels by true and then by predicted class name, without zeros), and for CAMs
        ``threshold``. CAMs have two measures: ``cam_fixed`` at the fixed threshold, and ``cam_best`` at
        the best of many thresholds (chosen on this ground truth, so an upper bound). ``data`` identifies the
        data set.

    Raises:
        UserError: there is nothing to measure, ``dataset`` has no ground truth, or the classes differ.
    """
    metadata = DatasetMetadata.load(dataset)
    if not metadata.has_masks:
        raise UserError(f"{dataset} has no ground-truth masks; expected a data set with them to evaluate on")
    device = resources.device
    with_cpm = classifier is not None and trained_with_cpm(classifier)
    threshold = fixed_threshold(recipe.evaluate, with_cpm=with_cpm)
    measures: list[tuple[Callable[..., Any], dict[str, Any]]] = []
    if classifier is not None:
        check_classes(dataset, classifier, "classifier")
        warn_of_seen_images(dataset, classifier, "classifier")
        warn_of_large_views(recipe.label, classifier)
        arguments = {"classifier": classifier.absolute(), "config": recipe.label, "threshold": threshold}
        measures.append((CamEvaluator.load, arguments | {"device": device}))
    if labels is not None:
        folders = folders_of(labels)
        _check_labels(dataset, folders)
        absolute = [folder.absolute() for folder in folders]
        measures.append((LabelEvaluator, {"labels": absolute, "num_labels": 1 + len(metadata.class_names)}))
    if segmenter is not None:
        check_classes(dataset, segmenter, "segmenter")
        warn_of_seen_images(dataset, segmenter, "segmenter")
        arguments = {"segmenter": segmenter.absolute(), "config": recipe.predict}
        measures.append((SegmenterEvaluator.load, arguments | {"device": device}))
    if not measures:
        raise UserError("nothing to evaluate: give --classifier, --labels or --segmenter")
    with session_of(resources, cluster, "evaluate"):
        counted = map_stage(
            dataset,
            [*IMAGE_COLUMNS, "mask"],
            Evaluator,
            arguments={"measures": measures},
            resources=resources,
        )
        rows = list(counted)
    return {"data": dataset_settings(dataset), **describe_counts(rows, metadata.class_names, threshold)}


def _check_labels(dataset: Path, labels: Sequence[Path]) -> None:
    """Raise UserError if no image of the data set has a label; a missing label counts as background."""
    label_settings(labels, dataset)
    ours, theirs = set(ShardReader(dataset).image_ids), set(ShardReader(labels).image_ids)
    if ours.isdisjoint(theirs):
        raise UserError(
            f"{named(labels)} has labels for none of the images of {dataset}; "
            "expected labels of that data set"
        )
    if missing := len(ours - theirs):
        log.warning(
            "%s of %s images of %s have no label in %s, and count as background",
            *(f"{missing:,}", f"{len(ours):,}", dataset, named(labels)),
        )
