"""Training of the classifier on Ray Train."""

from dataclasses import replace
from pathlib import Path

from ray_wsss.cluster.settle_sam import settle_sam
from ray_wsss.cluster.workers import fit
from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.runs.dependencies import (
    check_validation,
    classifier_settings,
    settings_of,
    warn_of_near_duplicates,
)
from ray_wsss.runs.manifest import Output
from ray_wsss.stages.features.stored import features_settings
from ray_wsss.training.classifier import count_trainable, train_classifier
from ray_wsss.training.length import resolve_epochs
from ray_wsss.training.local_session import continue_from
from ray_wsss.training.loop import Session, share_of_batch


def run_train_classifier(
    recipe: Recipe,
    *,
    dataset: Path,
    out: Path,
    workers: Workers,
    cluster: Cluster,
    segments: Path | None = None,
    embeddings: Path | None = None,
    features: Path | None = None,
    validation: Path | None = None,
    limit: ErrorLimit | None = None,
    overwrite: bool | None = None,
    warm_up_only: bool = False,
    warmed_up: Path | None = None,
) -> None:
    """Train a classifier on ``dataset``; ``out`` becomes a folder with the network and its checkpoints.

    Args:
        segments: output of `run_segment_everything`; turns SSC on.
        embeddings: output of `run_embed`; ``cpm.view=image`` needs it.
        features: output of `run_extract_features` by the classifier's frozen backbone, which is then not
            computed.
        validation: data set with ground truth, on which the CAMs are measured during training. It does not
            change the training; it only decides which network is kept as the best, beside the last one.
        limit: how many images may be broken; None: the default.
        warm_up_only: pause before the iteration that CPM starts with; the next call goes on there.
        warmed_up: output of a training without CPM that has paused there and has the same settings else. This
            training goes on from its checkpoint. Both run in this process (no ``workers``).

    Raises:
        UserError: the inputs don't fit together, or there are too few images.
    """
    if recipe.classifier.max_iters == 0 and recipe.classifier.epochs is None:
        recipe = replace(recipe, cpm=replace(recipe.cpm, enabled=False))  # which needs SAM and embeddings
    recipe = settle_sam(
        recipe,
        out,
        "train-classifier",
        processes=workers,
        cluster=cluster,
        overwrite=overwrite,
        encodes=recipe.cpm.encodes,
        embeddings=embeddings if recipe.cpm.reads_embeddings else None,
    )
    settings = features_settings(features, recipe, dataset)
    settings |= classifier_settings(recipe, dataset, segments, embeddings, workers.device)
    share_of_batch(recipe.classifier, max(1, workers.workers), "classifier")
    images = count_trainable(recipe, dataset, embeddings, features, tell=True)
    recipe = resolve_epochs(recipe, "classifier", images)
    output = Output(out, "train-classifier", settings | settings_of(recipe, "classifier", "cpm"))
    check_validation(validation, dataset)
    if output.begin(overwrite=overwrite) == "finished":
        output.log_finished(overwrite)
        return
    warn_of_near_duplicates(validation, dataset)

    source = dataset.absolute()
    views = {
        "segments": segments,
        "embeddings": embeddings,
        "features": features,
        "validation": validation,
    }
    absolute = {name: path.absolute() for name, path in views.items() if path is not None}
    until = recipe.cpm.warmup_iters if warm_up_only else None
    if warmed_up is not None:
        continue_from(warmed_up, out, recipe.cpm.warmup_iters)

    def loop(session: Session) -> None:
        train_classifier(recipe, source, session, **absolute, limit=limit, until=until)

    keep = recipe.classifier.keep_checkpoints
    fit(loop, out=out, workers=workers, cluster=cluster, keep_checkpoints=keep)
    if not warm_up_only:
        output.finish()
