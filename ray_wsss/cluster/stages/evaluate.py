"""Evaluation on Ray: confusion counts from an actor pool, added up in the driver."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_wsss.cluster.actors import iterate, map_stage
from ray_wsss.cluster.connect import ray_session
from ray_wsss.config import Recipe
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.runs.chunks import IMAGE_COLUMNS
from ray_wsss.runs.dependencies import check_classes, dataset_settings
from ray_wsss.runs.manifest import require_finished
from ray_wsss.stages.evaluate import (
    CamEvaluator,
    Evaluator,
    LabelEvaluator,
    SegmenterEvaluator,
    describe_counts,
)


def run_evaluate(
    recipe: Recipe,
    *,
    dataset: Path,
    classifier: Path | None,
    labels: Path | None,
    segmenter: Path | None,
    resources: Resources,
    cluster: Cluster,
) -> dict[str, Any]:
    """Measure CAMs, pseudo labels and segmenter against the ground truth of ``dataset``.

    Returns:
        Per measure its ``miou``, ``iou`` per class name (None for a class that never occurs), ``confusion``
        (pixels by true and then by predicted class name, without zeros), and for CAMs ``threshold``:
        ``cam_fixed`` at the configured threshold, ``cam_best`` at the best of the sweep (picked on this
        ground truth, so an upper bound). ``data`` says what it was measured on.

    Raises:
        UserError: nothing to measure, or classes that differ.
    """
    metadata = DatasetMetadata.load(dataset)
    if not metadata.has_masks:
        raise UserError(f"{dataset} has no ground-truth masks; expected a data set with them to evaluate on")
    device = resources.device
    threshold = recipe.evaluate.cam_threshold
    measures: list[tuple[Callable[..., Any], dict[str, Any]]] = []
    if classifier is not None:
        check_classes(dataset, classifier, "classifier")
        arguments = {"classifier": classifier.absolute(), "config": recipe.label, "threshold": threshold}
        measures.append((CamEvaluator.load, arguments | {"device": device}))
    if labels is not None:
        _check_labels(dataset, labels)
        measures.append(
            (LabelEvaluator, {"labels": labels.absolute(), "num_labels": 1 + len(metadata.class_names)})
        )
    if segmenter is not None:
        check_classes(dataset, segmenter, "segmenter")
        arguments = {"segmenter": segmenter.absolute(), "config": recipe.predict}
        measures.append((SegmenterEvaluator.load, arguments | {"device": device}))
    if not measures:
        raise UserError("nothing to evaluate: give --classifier, --labels or --segmenter")
    with ray_session(cluster.address, verbose=cluster.verbose):
        counted = map_stage(
            dataset,
            [*IMAGE_COLUMNS, "mask"],
            Evaluator,
            arguments={"measures": measures},
            resources=resources,
        )
        rows = list(iterate(counted))
    return {"data": dataset_settings(dataset), **describe_counts(rows, metadata.class_names, threshold)}


def _check_labels(dataset: Path, labels: Path) -> None:
    """Raise UserError where none of the images has a label: missing ones count as background."""
    require_finished(labels, "label")
    if set(ShardReader(dataset).image_ids).isdisjoint(ShardReader(labels).image_ids):
        raise UserError(f"{labels} has labels for none of the images of {dataset}; expected its own labels")
