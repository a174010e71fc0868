"""Ingest and training on Ray; what the command line and the jobs call."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from ray_wsss.cluster.map import iterate
from ray_wsss.cluster.session import Cluster, ray_session
from ray_wsss.cluster.train import Workers, fit
from ray_wsss.config import Recipe
from ray_wsss.data.schema import DatasetMetadata, SourceKind, SourceRow
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import ROWS_PER_SHARD, IngestShard, ShardSummary, begin_ingest, finish_ingest
from ray_wsss.stages.manifest import Output, file_hash, require_finished
from ray_wsss.stages.provenance import (
    cache_settings,
    check_validation,
    dataset_settings,
    sam_settings,
    segments_settings,
    settings_of,
    settled,
    with_absolute_paths,
)
from ray_wsss.stages.train_classifier import check_trainable, train_classifier
from ray_wsss.stages.train_segmenter import labelled_rows, train_segmenter
from ray_wsss.stages.training import Session, share_of_batch


def run_ingest(
    class_names: list[str],
    rows: list[SourceRow],
    *,
    source: SourceKind,
    out: Path,
    max_errors: int | None,
    cluster: Cluster,
) -> DatasetMetadata:
    """Read, verify and write the images of ``rows`` as a data set at ``out``, shard by shard.

    Image bytes go from disk to shard inside one task and never through the object store.

    Raises:
        UserError: as `stages.ingest.begin_ingest` and `finish_ingest`.
    """
    begin_ingest(out)
    shards = [rows[at : at + ROWS_PER_SHARD] for at in range(0, len(rows), ROWS_PER_SHARD)]
    plan = pa.table(
        {
            "shard": list(range(len(shards))),
            "rows": [json.dumps([asdict(r) for r in shard]) for shard in shards],
        }
    )
    summaries = []
    if shards:
        ingest = IngestShard(out.absolute(), len(class_names))
        with ray_session(cluster.address, verbose=cluster.verbose):
            blocks = ray.data.from_arrow(plan).repartition(len(shards))
            done = blocks.map_batches(
                partial(ingest_shard, ingest=ingest), batch_size=1, batch_format="pyarrow"
            )
            results = sorted(iterate(done), key=lambda row: row["shard"])
        for row in results:
            summary = json.loads(row["summary"])
            summary["errors"] = [tuple(error) for error in summary["errors"]]
            summaries.append(ShardSummary(**summary))
    return finish_ingest(out, class_names, source, summaries, max_errors)


def ingest_shard(plan: pa.Table, ingest: IngestShard) -> pa.Table:
    (planned,) = plan.to_pylist()
    rows = [SourceRow(**_tuples(row)) for row in json.loads(planned["rows"])]
    summary = ingest(rows, planned["shard"])
    return pa.table({"shard": [planned["shard"]], "summary": [json.dumps(asdict(summary))]})


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    names = ("image_labels", "stated_hw")
    return {k: tuple(v) if k in names and v is not None else v for k, v in row.items()}


def run_train_classifier(
    recipe: Recipe,
    *,
    dataset: Path,
    out: Path,
    workers: Workers,
    cluster: Cluster,
    segments: Path | None = None,
    embeddings: Path | None = None,
    validation: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train a classifier on ``dataset``; ``out`` becomes a folder with the network and its checkpoints.

    Args:
        segments: output of `labelling.run_segment_everything`; SSC is on where it is given.
        embeddings: output of `labelling.run_embed`; ``cpm.view=image`` needs it.
        validation: data set with ground truth to measure the CAMs on meanwhile; the result does not depend
            on it, but for the best network, which is kept beside the last.

    Raises:
        UserError: inputs that don't fit together, or too few images.
    """
    recipe = settled(recipe, workers.device)
    settings = classifier_settings(recipe, dataset, segments, embeddings, workers.device)
    output = Output(out, "train-classifier", settings)
    share_of_batch(recipe.classifier, max(1, workers.workers), "classifier")
    check_trainable(dataset, recipe.classifier.batch_size)
    check_validation(validation, dataset)
    if _already_done(output, overwrite):
        return

    source = dataset.absolute()
    views = {"segments": segments, "embeddings": embeddings, "validation": validation}
    absolute = {name: path.absolute() for name, path in views.items() if path is not None}

    def loop(session: Session) -> None:
        train_classifier(recipe, source, session, **absolute)

    keep = recipe.classifier.keep_checkpoints
    fit(loop, out=out, workers=workers, cluster=cluster, keep_checkpoints=keep)
    output.finish()


def classifier_settings(
    recipe: Recipe, dataset: Path, segments: Path | None, embeddings: Path | None, device: str
) -> dict[str, Any]:
    """What a classifier's training on a device depends on.

    Raises:
        UserError: inputs that don't fit together.
    """
    settings = dataset_settings(dataset) | settings_of(recipe, "classifier", "cpm")
    if recipe.cpm.enabled:
        settings |= sam_settings(recipe, device if recipe.cpm.view == "crop" else None)
    if segments is not None:
        settings |= segments_settings(segments, dataset)
    if recipe.cpm.enabled and recipe.cpm.view == "image":
        if embeddings is None:
            raise UserError("cpm.view is image, which needs --embeddings: the output of 'ray-wsss embed'")
        settings |= cache_settings(embeddings, recipe, dataset)
    return settings


def run_train_segmenter(
    recipe: Recipe,
    *,
    dataset: Path,
    labels: Path,
    out: Path,
    workers: Workers,
    cluster: Cluster,
    validation: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train a segmenter on the pseudo labels ``labels`` of ``dataset``; ``validation`` as for classifiers."""
    require_finished(labels, "label")
    recipe = with_absolute_paths(recipe)
    settings = settings_of(recipe, "segmenter") | dataset_settings(dataset)
    output = Output(out, "train-segmenter", settings | {"labels": file_hash(labels / "manifest.json")})
    share_of_batch(recipe.segmenter, max(1, workers.workers), "segmenter")
    labelled_rows(dataset, labels, recipe.segmenter.batch_size)
    check_validation(validation, dataset)
    if _already_done(output, overwrite):
        return

    source, targets = dataset.absolute(), labels.absolute()
    measured = validation.absolute() if validation is not None else None

    def loop(session: Session) -> None:
        train_segmenter(recipe, source, targets, session, validation=measured)

    keep = recipe.segmenter.keep_checkpoints
    fit(loop, out=out, workers=workers, cluster=cluster, keep_checkpoints=keep)
    output.finish()


def _already_done(output: Output, overwrite: bool) -> bool:
    state = output.begin(overwrite=overwrite)
    if state == "finished":
        print(f"{output.out} is already finished; --overwrite makes it again")
    return state == "finished"
