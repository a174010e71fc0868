"""The stages of the pipeline on Ray; what the command line and the jobs call."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from ray_wsss.cluster.map import Resources, iterate, map_stage, write_shards
from ray_wsss.cluster.session import ray_session
from ray_wsss.cluster.train import Workers, fit
from ray_wsss.config import Recipe
from ray_wsss.data.schema import DatasetMetadata, SourceKind, SourceRow
from ray_wsss.errors import UserError
from ray_wsss.models.sam.build import resolve_checkpoint
from ray_wsss.models.store import read_class_names
from ray_wsss.overrides import flatten
from ray_wsss.stages.ingest import IngestShard, ShardSummary, begin_ingest, finish_ingest
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.manifest import Output, file_hash, require_finished
from ray_wsss.stages.train_classifier import check_trainable, train_classifier
from ray_wsss.stages.train_segmenter import labelled_rows, train_segmenter
from ray_wsss.stages.training import Session, share_of_batch

ROWS_PER_SHARD = 256
IMAGE_COLUMNS = ["image_id", "image", "orientation", "image_labels"]
# What does not change a result: it may differ when a run is resumed.
_INCIDENTAL = ("loader_workers", "log_every", "checkpoint_every", "batch_size")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which Ray to use."""

    address: str | None = None
    """Ray cluster (auto, host:port); by default $RAY_ADDRESS, else a fresh Ray on this machine."""
    verbose: bool = False
    """Show Ray's own log, progress bars and stack traces."""


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
                lambda block: _ingest_block(block, ingest), batch_size=1, batch_format="pyarrow"
            )
            results = sorted(iterate(done), key=lambda row: row["shard"])
        for row in results:
            summary = json.loads(row["summary"])
            summary["errors"] = [tuple(error) for error in summary["errors"]]
            summaries.append(ShardSummary(**summary))
    return finish_ingest(out, class_names, source, summaries, max_errors)


def _ingest_block(plan: pa.Table, ingest: IngestShard) -> pa.Table:
    (planned,) = plan.to_pylist()
    rows = [SourceRow(**_tuples(row)) for row in json.loads(planned["rows"])]
    summary = ingest(rows, planned["shard"])
    return pa.table({"shard": [planned["shard"]], "summary": [json.dumps(asdict(summary))]})


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    names = ("image_labels", "stated_hw")
    return {k: tuple(v) if k in names and v is not None else v for k, v in row.items()}


def run_train_classifier(
    recipe: Recipe, *, dataset: Path, out: Path, workers: Workers, cluster: Cluster, overwrite: bool = False
) -> None:
    """Train a classifier on ``dataset``; ``out`` becomes a folder with the network and its checkpoints."""
    recipe = _with_absolute_paths(recipe)
    settings = _dataset_settings(dataset) | _settings(recipe, "classifier", "cpm")
    if recipe.cpm.enabled:
        settings |= _sam_settings(recipe)
    output = Output(out, "train-classifier", settings)
    share_of_batch(recipe.classifier, max(1, workers.workers), "classifier")
    check_trainable(dataset, recipe.classifier.batch_size)
    if _already_done(output, overwrite):
        return

    source = dataset.absolute()

    def loop(session: Session) -> None:
        train_classifier(recipe, source, session)

    fit(loop, out=out, workers=workers, address=cluster.address, verbose=cluster.verbose)
    output.finish()


def run_train_segmenter(
    recipe: Recipe,
    *,
    dataset: Path,
    labels: Path,
    out: Path,
    workers: Workers,
    cluster: Cluster,
    overwrite: bool = False,
) -> None:
    """Train a segmenter on the pseudo labels ``labels`` of ``dataset``."""
    require_finished(labels, "label")
    recipe = _with_absolute_paths(recipe)
    settings = _settings(recipe, "segmenter") | _dataset_settings(dataset)
    output = Output(out, "train-segmenter", settings | {"labels": file_hash(labels / "manifest.json")})
    share_of_batch(recipe.segmenter, max(1, workers.workers), "segmenter")
    labelled_rows(dataset, labels, recipe.segmenter.batch_size)
    if _already_done(output, overwrite):
        return

    source, targets = dataset.absolute(), labels.absolute()

    def loop(session: Session) -> None:
        train_segmenter(recipe, source, targets, session)

    fit(loop, out=out, workers=workers, address=cluster.address, verbose=cluster.verbose)
    output.finish()


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a label run did."""

    images: int
    segments: int
    errors: int

    def __str__(self) -> str:
        return f"{self.images} images labelled, {self.segments} class masks, {self.errors} errors"


def run_label(
    recipe: Recipe,
    *,
    dataset: Path,
    classifier: Path,
    out: Path,
    resources: Resources,
    cluster: Cluster,
    overwrite: bool = False,
) -> LabelSummary:
    """Make pseudo labels for all of ``dataset`` with a trained classifier and SAM.

    Raises:
        UserError: the classifier has other classes than the data set, or every image failed.
    """
    check_classes(dataset, classifier, "classifier")
    recipe = _with_absolute_paths(recipe)
    settings = _settings(recipe, "label") | _sam_settings(recipe) | _dataset_settings(dataset)
    output = Output(out, "label", settings | {"classifier": file_hash(classifier / "model.safetensors")})
    if _already_done(output, overwrite):
        return _summarise_labels(out)
    for stale in (out / "shards").glob("*.parquet"):
        stale.unlink()
    with ray_session(cluster.address, verbose=cluster.verbose):
        labelled = map_stage(
            dataset,
            IMAGE_COLUMNS,
            SamLabeller,
            arguments={
                "config": recipe.label,
                "sam": recipe.sam,
                "classifier": classifier.absolute(),
                "device": resources.device,
            },
            resources=resources,
            batch_size=recipe.label.batch_size,
        )
        write_shards(labelled, out / "shards")
    summary = _summarise_labels(out)
    if not summary.images:
        raise UserError(
            f"all {summary.errors} images failed; the column 'error' of {out / 'shards'} says why"
        )
    output.finish()
    return summary


def _summarise_labels(out: Path) -> LabelSummary:
    images = segments = errors = 0
    for path in sorted((out / "shards").glob("*.parquet")):
        table = pq.read_table(path, columns=["error", "segments"])
        failed = len(table) - table["error"].null_count
        images, errors = images + len(table) - failed, errors + failed
        segments += len(table["segments"].combine_chunks().flatten())
    return LabelSummary(images=images, segments=segments, errors=errors)


def _already_done(output: Output, overwrite: bool) -> bool:
    state = output.begin(overwrite=overwrite)
    if state == "finished":
        print(f"{output.out} is already finished; --overwrite makes it again")
    return state == "finished"


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Workers have a working directory of their own."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path is not None else None

    sam, classifier, segmenter = recipe.sam, recipe.classifier, recipe.segmenter
    return replace(
        recipe,
        sam=replace(sam, checkpoint=absolute(sam.checkpoint)),
        classifier=replace(classifier, backbone_checkpoint=absolute(classifier.backbone_checkpoint)),
        segmenter=replace(segmenter, backbone_checkpoint=absolute(segmenter.backbone_checkpoint)),
    )


def _settings(recipe: Recipe, *sections: str) -> dict[str, Any]:
    keys = flatten(recipe)
    kept = {k: v for k, v in keys.items() if k.split(".")[0] in sections}
    training = ("classifier.batch_size", "segmenter.batch_size")
    return {k: v for k, v in kept.items() if k in training or k.split(".")[-1] not in _INCIDENTAL}


def _sam_settings(recipe: Recipe) -> dict[str, str]:
    return {"sam.name": recipe.sam.name, "sam.sha256": file_hash(resolve_checkpoint(recipe.sam))}


def _dataset_settings(dataset: Path) -> dict[str, str]:
    DatasetMetadata.load(dataset)
    return {"dataset": str(dataset.absolute()), "dataset.sha256": file_hash(dataset / "metadata.json")}


def check_classes(dataset: Path, model: Path, kind: str) -> None:
    """Raise UserError where a trained network and a data set have different classes."""
    require_finished(model, f"train-{kind}")
    ours, theirs = DatasetMetadata.load(dataset).class_names, read_class_names(model, kind)
    if ours == theirs:
        return
    common = len(set(ours) & set(theirs))
    raise UserError(
        f"{dataset} has {len(ours)} classes ({', '.join(ours[:3])}, ...), the {kind} {model} {len(theirs)} "
        f"({', '.join(theirs[:3])}, ...), {common or 'none'} in common; expected the same in the same order"
    )
