"""Every stage in turn, from images to a segmenter and its score; running it again resumes it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.cluster.stages.ingest import ingest_once
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.segment_everything import run_segment_everything
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.data.source import Source
from ray_wsss.runs.dependencies import check_validation
from ray_wsss.runs.run_report import RunReport, describe_run
from ray_wsss.storage import write_json

log = logging.getLogger(__name__)

METRICS = "metrics.json"


def run_all(
    recipe: Recipe,
    *,
    dataset: Path,
    out: Path,
    resources: Resources,
    workers: Workers,
    cluster: Cluster,
    source: Source | None = None,
    validation: Path | None = None,
    ssc: bool = False,
    limit: ErrorLimit | None = None,
) -> dict[str, Any] | None:
    """Ingest, embed, segment, train, label, train again and evaluate, each into its own folder of ``out``.

    Embeddings are made only if ``cpm.view`` is ``image``; labelling then uses them too, unless it has tiles.

    Args:
        dataset: data set to train on, made from ``source`` if there is one.
        resources: resources of the stages that run SAM, and of evaluation.
        workers: workers of both trainings.
        validation: data set with ground truth, measured on during both trainings and at the end.
        ssc: also segment everything, which adds SSC to the classifier's loss.
        limit: how many images may fail in each stage except the evaluation; None: the default.

    Returns:
        The result of `run_evaluate`; None without ``validation``.

    Raises:
        UserError: as the stages. The outputs of finished stages stay.
    """
    if source is None:
        check_validation(validation, dataset)
    embeddings = out / "embeddings" if recipe.cpm.reads_embeddings else None
    segments = out / "segments" if ssc else None
    wanted = {
        "ingest": source is not None,
        "embed": recipe.cpm.reads_embeddings,
        "segment-everything": ssc,
        "train-classifier": True,
        "label": True,
        "train-segmenter": True,
        "evaluate": validation is not None,
    }
    say = _Steps([name for name, is_wanted in wanted.items() if is_wanted])

    def work_off(stage: Callable[..., RunReport], what: str, folder: str, **inputs: Path | None) -> None:
        run: Any = {"resources": resources, "cluster": cluster, "limit": limit or ErrorLimit()}
        report = stage(recipe, dataset=dataset, out=out / folder, **inputs, **run)
        log.info(describe_run(report, what))

    training: Any = {"workers": workers, "cluster": cluster, "validation": validation, "limit": limit}
    classifier, labels, segmenter = out / "classifier", out / "labels", out / "segmenter"
    with ray_session(cluster.address, verbose=cluster.verbose):
        if source is not None:
            say("ingest")
            for remark in source.remarks:
                log.info(remark)
            ingest_once(source, out=dataset, cluster=cluster)
            check_validation(validation, dataset)
        if embeddings is not None:
            say("embed")
            work_off(run_embed, "embedded", "embeddings")
        if segments is not None:
            say("segment-everything")
            work_off(run_segment_everything, "segmented", "segments", embeddings=embeddings)
        say("train-classifier")
        views = {"segments": segments, "embeddings": embeddings}
        run_train_classifier(recipe, dataset=dataset, out=classifier, **views, **training)
        say("label")
        of_whole = embeddings if recipe.label.tile_px is None else None
        work_off(run_label, "labelled", "labels", classifier=classifier, embeddings=of_whole)
        say("train-segmenter")
        run_train_segmenter(recipe, dataset=dataset, labels=labels, out=segmenter, **training)
        if validation is None:
            return None
        say("evaluate")
        metrics = run_evaluate(
            recipe,
            dataset=validation,
            classifier=classifier,
            labels=None,
            segmenter=segmenter,
            resources=resources,
            cluster=cluster,
        )
    write_json(metrics, out / METRICS)
    return metrics


class _Steps:
    """Logs the start of each stage, with its place among the stages that run."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __call__(self, name: str) -> None:
        log.info("[%d/%d] %s", self.names.index(name) + 1, len(self.names), name)
