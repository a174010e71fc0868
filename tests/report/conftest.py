"""A run as run-all leaves it, made without Ray, of a data set whose names attack the page."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.config import Recipe
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.data.schema import DatasetMetadata, write_errors, write_table_atomically
from ray_wsss.models.promptable.build import input_frame
from ray_wsss.models.segmenter import SegmenterSpec
from ray_wsss.runs.dependencies import dataset_settings, settings_of
from ray_wsss.runs.history import recorded_run
from ray_wsss.runs.manifest import Output, file_hash
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.stages.evaluate import LabelEvaluator, add_up, describe_confusion
from ray_wsss.stages.label import SamLabeller
from ray_wsss.storage import write_json

EVIL_IMAGE = "<script>alert(1)</script>.jpg"
EVIL_CLASS = "</script><b>bold</b>"
EVIL_FAILURE = "\"><img src=x onerror=alert(2)>'.jpg"
FAILED = "a <b>reason</b>"


@dataclass(frozen=True)
class Run:
    """The folders of a run."""

    root: Path
    dataset: Path
    class_names: tuple[str, ...]
    evil_image: str = EVIL_IMAGE
    evil_names: tuple[str, ...] = (EVIL_CLASS, EVIL_FAILURE, FAILED)
    """That stand in the page's text."""


def _attack(dataset: Path) -> tuple[str, ...]:
    """Rename two images and a class; returns the class names."""
    (path,) = (dataset / "shards").glob("*.parquet")
    table = pq.read_table(path)
    ids = [EVIL_IMAGE, *table["image_id"].to_pylist()[1:-1], EVIL_FAILURE]
    at = table.schema.get_field_index("image_id")
    write_table_atomically(table.set_column(at, table.schema.field(at), [ids]), path)
    metadata = DatasetMetadata.load(dataset)
    names = (EVIL_CLASS, *metadata.class_names[1:])
    replace(metadata, class_names=names).save(dataset)
    return names


def _label(recipe: Recipe, dataset: Path, classifier: Path, out: Path) -> None:
    settings = settings_of(recipe, "label") | dataset_settings(dataset)
    output = Output(out, "label", settings | {"classifier": file_hash(classifier / "model.safetensors")})
    output.begin()
    stage = SamLabeller(recipe.label, recipe.sam, classifier)
    prepare = PrepareImages(max_side_px=recipe.label.max_side_px, frame=input_frame(recipe.sam))
    (chunk,) = plan_chunks(dataset)
    images = prepare(chunk)
    images[-1] = replace(images[-1], error=FAILED)
    with recorded_run(out, resources={"actors": 1, "cpus_per_actor": 1.0, "gpus_per_actor": 0}) as figures:
        table, tally = stage(images)
        counts = {"images": tally.images, "prompts": tally.prompts, "masks": tally.masks, "errors": 1}
        times = {"startup_s": 1.5, "work_s": 2.0, "images_per_s": 12.0, "done_before": 0}
        figures |= counts | times | {"seconds": tally.seconds | {"decode": 0.5, "wait": 0.1}}
    Parts(out, output.fingerprint).write(chunk, table, tally)
    write_errors([(EVIL_FAILURE, FAILED)], out)
    output.finish()


def _evaluate(dataset: Path, labels: Path, names: tuple[str, ...], path: Path) -> None:
    (shard,) = (dataset / "shards").glob("*.parquet")
    counted = LabelEvaluator(labels, 1 + len(names))(pq.read_table(shard))
    ((total, images),) = add_up(counted.to_pylist()).values()
    matrix = total.matrix()
    classes = ("background", *names)
    iou = dict(zip(classes, [None if value != value else value for value in matrix.iou().tolist()]))
    figures = {"miou": matrix.miou(), "images": images, "iou": iou}
    figures |= {"confusion": describe_confusion(matrix, classes)}
    write_json({"pseudo_label": figures}, path)


@pytest.fixture(scope="session")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    write_dataset: Callable[[Path, int], Path],
    save_segmenter: Callable[[SegmenterSpec, Path], None],
    small_recipe: Recipe,
) -> Run:
    """24 scenes, a classifier of four iterations, its labels with one failure, an untrained segmenter."""
    root = tmp_path_factory.mktemp("report") / "my <i>run"
    dataset = write_dataset(root.parent, 24)
    names = _attack(dataset)
    classifier = root / "classifier"
    workers = Workers(workers=0)
    run_train_classifier(small_recipe, dataset=dataset, out=classifier, workers=workers, cluster=Cluster())
    _label(small_recipe, dataset, classifier, root / "labels")
    output = Output(
        root / "segmenter",
        "train-segmenter",
        settings_of(small_recipe, "segmenter") | {"labels": file_hash(root / "labels" / "manifest.json")},
    )
    output.begin()
    save_segmenter(SegmenterSpec.of(small_recipe.segmenter, names), root / "segmenter")
    history = [{"iteration": float(k), "loss_seg": 1 / k, "seconds_per_step": 0.1} for k in (1, 2, 3)]
    (root / "segmenter" / "progress.json").write_text(json.dumps({"iteration": 3, "history": history}))
    output.finish()
    _evaluate(dataset, root / "labels", names, root / "metrics.json")
    return Run(root, dataset, names)
