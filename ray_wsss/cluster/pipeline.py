"""The stages of the pipeline on Ray; what the command line and the jobs call."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from ray_wsss.cluster.map import Resources, iterate, map_stage, read_shards
from ray_wsss.cluster.session import ray_session
from ray_wsss.cluster.train import Workers, fit
from ray_wsss.config import Recipe, flatten
from ray_wsss.data.schema import DatasetMetadata, SourceKind, SourceRow, replace_atomically
from ray_wsss.errors import UserError
from ray_wsss.models.sam.build import resolve_checkpoint
from ray_wsss.models.store import read_class_names
from ray_wsss.stages.evaluate import CamEvaluator, LabelEvaluator, SegmenterEvaluator, add_up
from ray_wsss.stages.ingest import IngestShard, ShardSummary, begin_ingest, finish_ingest
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.manifest import Output, file_hash, require_finished
from ray_wsss.stages.train_classifier import check_trainable, train_classifier
from ray_wsss.stages.train_segmenter import labelled_rows, train_segmenter
from ray_wsss.stages.training import Session, share_of_batch

ROWS_PER_SHARD = 256
_COLUMNS = ["image_id", "image", "orientation", "image_labels"]
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
        {"shard": list(range(len(shards))), "rows": [json.dumps([asdict(r) for r in shard]) for shard in shards]}
    )
    summaries = []
    if shards:
        with ray_session(cluster.address, verbose=cluster.verbose):
            blocks = ray.data.from_arrow(plan).repartition(len(shards))
            done = blocks.map_batches(
                _ingest_shard,
                batch_size=1,
                batch_format="pyarrow",
                fn_kwargs={"ingest": IngestShard(out.absolute(), len(class_names))},
            )
            results = sorted(iterate(done), key=lambda row: row["shard"])
        for row in results:
            summary = json.loads(row["summary"])
            summary["errors"] = [tuple(error) for error in summary["errors"]]
            summaries.append(ShardSummary(**summary))
    return finish_ingest(out, class_names, source, summaries, max_errors)


def _ingest_shard(plan: pa.Table, ingest: IngestShard) -> pa.Table:
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
    settings = _settings(recipe, "classifier", "cpm")
    if recipe.cpm.enabled:
        settings |= _sam_settings(recipe)
    output = Output(out, "train-classifier", settings | _dataset_settings(dataset))
    share_of_batch(recipe.classifier, max(1, workers.workers), "classifier")
    check_trainable(dataset, recipe.classifier.batch_size)
    if _already_done(output, overwrite):
        return

    def loop(session: Session) -> None:
        train_classifier(recipe, dataset.absolute(), session)

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
    settings = _settings(recipe, "segmenter") | _dataset_settings(dataset)
    output = Output(out, "train-segmenter", settings | {"labels": file_hash(labels / "manifest.json")})
    share_of_batch(recipe.segmenter, max(1, workers.workers), "segmenter")
    labelled_rows(dataset, labels, recipe.segmenter.batch_size)
    if _already_done(output, overwrite):
        return

    def loop(session: Session) -> None:
        train_segmenter(recipe, dataset.absolute(), labels.absolute(), session)

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
    _check_classes(dataset, classifier, "classifier")
    settings = _settings(recipe, "label") | _sam_settings(recipe) | _dataset_settings(dataset)
    output = Output(out, "label", settings | {"classifier": file_hash(classifier / "model.safetensors")})
    if not _already_done(output, overwrite):
        for stale in (out / "shards").glob("*.parquet"):
            stale.unlink()
        with ray_session(cluster.address, verbose=cluster.verbose):
            rows = read_shards(dataset, _COLUMNS, 4 * recipe.label.batch_size)
            labelled = map_stage(
                rows,
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
            _write_shards(labelled, out / "shards")
    summary = _summarise_labels(out)
    if not summary.images:
        raise UserError(f"all {summary.errors} images failed; the column 'error' of {out / 'shards'} says why")
    output.finish()
    return summary


def _write_shards(rows: ray.data.Dataset, folder: Path) -> None:
    # Consumed through iterate() only for its errors: write_parquet would wrap a UserError in Ray's own.
    from ray_wsss.cluster.map import unwrap

    try:
        rows.write_parquet(str(folder.absolute()))
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error


def _summarise_labels(out: Path) -> LabelSummary:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    images = segments = errors = 0
    for path in sorted((out / "shards").glob("*.parquet")):
        table = pq.read_table(path, columns=["error", "segments"])
        failed = len(table) - table["error"].null_count
        images, errors = images + len(table) - failed, errors + failed
        segments += pc.sum(pc.list_value_length(table["segments"])).as_py() or 0
    return LabelSummary(images=images, segments=segments, errors=errors)


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
        Per measure its ``miou`` and ``iou`` per class name (None for a class that never occurs), and for
        CAMs ``threshold``: ``cam_fixed`` at the configured threshold, ``cam_best`` at the best of the sweep
        (picked on this ground truth, so an upper bound).

    Raises:
        UserError: nothing to measure, or classes that differ.
    """
    metadata = DatasetMetadata.load(dataset)
    if not metadata.has_masks:
        raise UserError(f"{dataset} has no ground-truth masks; expected a data set with them to evaluate on")
    device = resources.device
    threshold = recipe.evaluate.cam_threshold
    stages: list[tuple[type, dict[str, Any]]] = []
    if classifier is not None:
        _check_classes(dataset, classifier, "classifier")
        arguments = {"classifier": classifier.absolute(), "config": recipe.label, "threshold": threshold}
        stages.append((CamEvaluator, arguments | {"device": device}))
    if labels is not None:
        require_finished(labels, "label")
        stages.append((LabelEvaluator, {"labels": labels.absolute(), "num_labels": 1 + len(metadata.class_names)}))
    if segmenter is not None:
        _check_classes(dataset, segmenter, "segmenter")
        arguments = {"segmenter": segmenter.absolute(), "max_side_px": recipe.label.max_side_px}
        stages.append((SegmenterEvaluator, arguments | {"device": device}))
    if not stages:
        raise UserError("nothing to evaluate: give --classifier, --labels or --segmenter")
    rows: list[dict[str, Any]] = []
    with ray_session(cluster.address, verbose=cluster.verbose):
        for stage, arguments in stages:
            shards = read_shards(dataset, [*_COLUMNS, "mask"], 4 * recipe.label.batch_size)
            counted = map_stage(
                shards, stage, arguments=arguments, resources=resources, batch_size=recipe.label.batch_size
            )
            rows += list(iterate(counted))
    return _metrics(rows, metadata.class_names, threshold)


def _metrics(rows: list[dict[str, Any]], class_names: tuple[str, ...], threshold: float) -> dict[str, Any]:
    totals = add_up(rows)
    names = ("background", *class_names)
    result: dict[str, Any] = {}

    def entry(key: str) -> dict[str, Any]:
        matrix, images = totals[key]
        iou = [None if value != value else value for value in matrix.iou().tolist()]
        return {"miou": matrix.miou(), "images": images, "iou": dict(zip(names, iou))}

    cams = [key for key in totals if key.startswith("cam@")]
    if cams:
        best = max(cams, key=lambda key: totals[key][0].miou())
        for name, key in (("cam_fixed", f"cam@{threshold:.2f}"), ("cam_best", best)):
            result[name] = {"threshold": float(key.removeprefix("cam@"))} | entry(key)
    return result | {key: entry(key) for key in totals if key not in cams}


def save_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    """Write figures as JSON, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _already_done(output: Output, overwrite: bool) -> bool:
    state = output.begin(overwrite=overwrite)
    if state == "finished":
        print(f"{output.out} is already finished; --overwrite makes it again")
    return state == "finished"


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


def _check_classes(dataset: Path, model: Path, kind: str) -> None:
    require_finished(model, f"train-{kind}")
    ours, theirs = DatasetMetadata.load(dataset).class_names, read_class_names(model, kind)
    if ours == theirs:
        return
    common = len(set(ours) & set(theirs))
    raise UserError(
        f"{dataset} has {len(ours)} classes ({', '.join(ours[:3])}, ...), the {kind} {model} {len(theirs)} "
        f"({', '.join(theirs[:3])}, ...), {common or 'none'} in common; expected the same in the same order"
    )
