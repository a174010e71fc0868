"""The pipeline with everything in an S3 bucket: read there, written there, and resumed from there."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from ray_wsss.cli import main
from ray_wsss.data.reader import open_shard
from ray_wsss.storage import copy_file, find_files, local_file
from ray_wsss.training.local_session import LocalSession

pytestmark = pytest.mark.usefixtures("ray_cluster")

TRAIN = [
    *("--preset", "demo", "--classifier.batch-size", "4", "--classifier.max-iters", "4"),
    *("--classifier.checkpoint-every", "2", "--classifier.log-every", "2", "--cpm.warmup-iters", "2"),
]


def _upload(folder: Path, target: Path) -> None:
    for name in find_files(folder):
        copy_file(folder / name, target / name)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    with local_file(folder / "model.safetensors") as file:
        return load_file(file)


def _rows(folder: Path) -> list[dict]:
    names = sorted(name for name in find_files(folder / "shards"))
    tables = []
    for name in names:
        with open_shard(folder / "shards" / name) as file:
            tables.append(file.read().replace_schema_metadata(None))
    return pa.concat_tables(tables).to_pylist()


def _run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def test_the_pipeline_in_a_bucket(
    bucket: Path,
    write_source: Callable[[Path, int], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, annotations = write_source(tmp_path / "source", 8)
    _upload(images, bucket / "images")
    copy_file(annotations, bucket / "instances.json")
    source = ("--images", bucket / "images", "--annotations", bucket / "instances.json")
    _run("ingest", "coco", *source, "--out", bucket / "dataset")
    _run("ingest", "coco", "--images", images, "--annotations", annotations, "--out", tmp_path / "dataset")
    assert _rows(bucket / "dataset") == _rows(tmp_path / "dataset")

    for root in (bucket, tmp_path):
        train = ("train-classifier", "--dataset", root / "dataset", "--validation", root / "dataset", *TRAIN)
        _run(*train, "--workers", "1", "--out", root / "classifier")
    ours, theirs = _weights(bucket / "classifier"), _weights(tmp_path / "classifier")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    made = find_files(bucket / "classifier")
    assert {"progress.log", "model.json", "manifest.json", "best/model.safetensors"} <= set(made)
    assert any(name.startswith("tensorboard/events") for name in made)
    assert "4/4" in (bucket / "classifier" / "progress.log").read_text()
    capsys.readouterr()

    for root in (bucket, tmp_path):
        label = ("label", "--preset", "demo", "--dataset", root / "dataset", "--label.scales", "1.0")
        _run(*label, "--classifier", root / "classifier", "--out", root / "labels")
    labels = _rows(bucket / "labels")
    assert labels == _rows(tmp_path / "labels")
    (bucket / "labels" / "shards" / "part-000000.parquet").unlink()
    label = ("label", "--preset", "demo", "--dataset", bucket / "dataset", "--label.scales", "1.0")
    _run(*label, "--classifier", bucket / "classifier", "--out", bucket / "labels")
    assert _rows(bucket / "labels") == labels

    data = ("--dataset", bucket / "dataset", "--labels", bucket / "labels", "--workers", "0")
    small = ("--segmenter.batch-size", "4", "--segmenter.max-iters", "4", "--segmenter.checkpoint-every", "2")
    train = ("train-segmenter", "--preset", "demo", *data, *small, "--out", bucket / "segmenter")
    _interrupt_at_first_checkpoint([str(word) for word in train], monkeypatch)
    _run(*train)
    history = json.loads((bucket / "segmenter" / "progress.json").read_text())["history"]
    assert history[-1]["iteration"] == 4

    predict = ("predict", "--preset", "demo", "--segmenter", bucket / "segmenter")
    predict = (*predict, "--images", bucket / "images", "--out", bucket / "predictions", "--overlays")
    _run(*predict)
    masks = find_files(bucket / "predictions" / "masks")
    assert len(masks) == 8
    (bucket / "predictions" / "masks" / next(iter(masks))).unlink()
    capsys.readouterr()
    _run(*predict)
    again = find_files(bucket / "predictions" / "masks")
    assert [again[name] == found for name, found in masks.items()].count(False) == 1

    _run("evaluate", "--preset", "demo", "--dataset", bucket / "dataset", "--labels", bucket / "labels",
         "--json", bucket / "metrics.json")  # fmt: skip
    assert json.loads((bucket / "metrics.json").read_text())
    assert not [name for name in find_files(bucket) if "anything" in name or name.endswith(".tmp")]


def _interrupt_at_first_checkpoint(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = LocalSession.report

    def report_once(self: LocalSession, *arguments: object, **named: object) -> None:
        report(self, *arguments, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalSession, "report", report_once)
        assert main(command) == 130


def test_a_store_that_cannot_be_used(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(bucket / "nowhere")
    assert main(["evaluate", "--preset", "demo", "--dataset", missing, "--labels", missing]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"ray-wsss: {missing} ")
    assert told.count("\n") == 1
