"""Trainings whose length is given in epochs: what runs, and what their manifests say."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import write_table_atomically
from ray_wsss.errors import UserError
from ray_wsss.runs.manifest import Output

HERE: dict[str, Any] = {"workers": Workers(workers=0), "cluster": Cluster()}


def settings_of_run(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())["depends_on"]


def iterations(out: Path) -> int:
    return json.loads((out / "progress.json").read_text())["iteration"]


def test_a_classifier_by_epochs(small_recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    """24 images in batches of 8. The same epochs go on; another number is another run."""
    recipe = override(small_recipe, {"classifier.epochs": 1.25, "cpm.warmup_epochs": 0.5})
    run_train_classifier(recipe, dataset=dataset, out=tmp_path, **HERE)
    settings = settings_of_run(tmp_path)
    assert (settings["classifier.epochs"], settings["classifier.max_iters"]) == (1.25, 4)
    assert (settings["cpm.warmup_epochs"], settings["cpm.warmup_iters"]) == (0.5, 2)
    assert iterations(tmp_path) == 4
    run_train_classifier(recipe, dataset=dataset, out=tmp_path, **HERE)
    other = override(recipe, {"classifier.epochs": 2.0})
    with pytest.raises(UserError, match=r"another classifier.epochs \(1.25, now 2.0\)"):
        run_train_classifier(other, dataset=dataset, out=tmp_path, **HERE)


def test_a_segmenter_by_epochs(small_recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    """Of the 10 images that have a pseudo label."""
    reader = ShardReader(dataset)
    rows = [reader.read(k, ["image_id", "mask"]) for k in range(10)]
    labels = Output(tmp_path / "labels", "label", {})
    labels.begin()
    table = {
        "image_id": [row["image_id"] for row in rows],
        "pseudo_label": [row["mask"] for row in rows],
        "error": pa.array([None] * 10, pa.string()),
    }
    write_table_atomically(pa.table(table), labels.out / "part-00000.parquet")
    labels.finish()
    recipe, out = override(small_recipe, {"segmenter.epochs": 2.0}), tmp_path / "out"
    run_train_segmenter(recipe, dataset=dataset, labels=labels.out, out=out, **HERE)
    settings = settings_of_run(out)
    assert (settings["segmenter.epochs"], settings["segmenter.max_iters"]) == (2, 3)
    assert iterations(out) == 3
