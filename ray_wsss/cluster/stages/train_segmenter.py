"""Training of the segmenter on Ray Train."""

from pathlib import Path

from ray_wsss.cluster.workers import fit
from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.runs.dependencies import (
    check_validation,
    dataset_settings,
    settings_of,
    warn_of_near_duplicates,
    with_absolute_paths,
)
from ray_wsss.runs.manifest import Output, file_hash, require_finished
from ray_wsss.training.length import resolve_epochs
from ray_wsss.training.loop import Session, share_of_batch
from ray_wsss.training.segmenter import labelled_rows, train_segmenter


def run_train_segmenter(
    recipe: Recipe,
    *,
    dataset: Path,
    labels: Path,
    out: Path,
    workers: Workers,
    cluster: Cluster,
    validation: Path | None = None,
    limit: ErrorLimit | None = None,
    overwrite: bool | None = None,
) -> None:
    """Train a segmenter on the pseudo labels ``labels`` of ``dataset``.

    Args:
        validation: data set with ground truth, on which the segmenter is measured during training. It only
            decides which network is kept as the best, beside the last one.
        limit: as for `run_train_classifier`.

    Raises:
        UserError: as `run_train_classifier`.
    """
    require_finished(labels, "label")
    recipe = with_absolute_paths(recipe)
    inputs = dataset_settings(dataset) | {"labels": file_hash(labels / "manifest.json")}
    share_of_batch(recipe.segmenter, max(1, workers.workers), "segmenter")
    images = len(labelled_rows(dataset, labels, recipe.segmenter.batch_size, tell=True))
    recipe = resolve_epochs(recipe, "segmenter", images)
    output = Output(out, "train-segmenter", settings_of(recipe, "segmenter") | inputs)
    check_validation(validation, dataset)
    if output.begin(overwrite=overwrite) == "finished":
        output.log_finished(overwrite)
        return
    warn_of_near_duplicates(validation, dataset)

    source, targets = dataset.absolute(), labels.absolute()
    measured = validation.absolute() if validation is not None else None

    def loop(session: Session) -> None:
        train_segmenter(recipe, source, targets, session, validation=measured, limit=limit)

    keep = recipe.segmenter.keep_checkpoints
    fit(loop, out=out, workers=workers, cluster=cluster, keep_checkpoints=keep)
    output.finish()
