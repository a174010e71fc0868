"""Ray Train: data-parallel training computes what one process computes, and resumes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ray_wsss.cluster.names import training_name
from ray_wsss.cluster.stages.segment_everything import run_segment_everything
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.cluster.workers import PROGRESS_LOG
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.console import logged_to

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Batch norm with batch statistics sees half the batch on each of two workers, so it is frozen here; SGD,
# because Adam's first steps divide rounding noise by itself where a gradient is nearly 0.
EXACT = {
    "classifier.freeze_norm": True,
    "classifier.optimiser": "sgd",
    "classifier.lr": 0.05,
    "segments.points_per_side": 4,
    "segments.stability_score_thresh": 0.8,
}


@pytest.fixture(scope="module")
def recipe(small_recipe: Recipe) -> Recipe:
    return override(small_recipe, EXACT)


@pytest.fixture(scope="module")
def segments(recipe: Recipe, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmented") / "segments"
    run_segment_everything(recipe, dataset=dataset, out=out, resources=Resources(), cluster=Cluster())
    return out


def _train(
    recipe: Recipe, dataset: Path, out: Path, workers: int, segments: Path | None = None
) -> dict[str, torch.Tensor]:
    run_train_classifier(
        recipe,
        dataset=dataset,
        out=out,
        workers=Workers(workers=workers),
        cluster=Cluster(),
        segments=segments,
    )
    return load_file(out / "model.safetensors")


def _losses(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if "loss" in k} for entry in _progress(out)["history"]]


def _progress(out: Path) -> dict:
    return json.loads((out / "progress.json").read_text())


def test_two_workers_compute_what_one_process_does(
    recipe: Recipe, dataset: Path, segments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logged_to():
        alone = _train(recipe, dataset, tmp_path / "alone", 0, segments)
    printed_alone = capsys.readouterr().out
    out = tmp_path / "two"
    with logged_to():
        two = _train(recipe, dataset, out, 2, segments)
    printed = capsys.readouterr().out

    assert alone.keys() == two.keys()
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-4, msg=name)
    assert [line.split()[:2] for line in printed.splitlines()] == [
        line.split()[:2] for line in printed_alone.splitlines()
    ]
    assert [set(losses) for losses in _losses(out)] == [
        {"loss_cls", "loss_ssc"},
        {"loss_cls", "loss_ssc", "loss_cpm"},
    ]
    for losses, expected in zip(_losses(out), _losses(tmp_path / "alone")):
        assert losses == pytest.approx(expected, abs=1e-4)
    assert _progress(out)["iteration"] == 4
    assert [entry["iteration"] for entry in _progress(out)["history"]] == [2, 4]
    assert json.loads((out / "manifest.json").read_text())["state"] == "finished"
    # num_to_keep: two checkpoints of the run, both under --out.
    assert len([path for path in (out / training_name(out)).glob("checkpoint_*") if path.is_dir()]) == 2
    assert (out / PROGRESS_LOG).read_text() == printed


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(recipe: Recipe, dataset: Path, tmp_path: Path) -> None:
    whole = _train(recipe, dataset, tmp_path / "whole", 0)
    out = tmp_path / "cut"
    _train(override(recipe, {"classifier.log_every": 1}), dataset, out, 1)
    # As a driver that died between the end of training and the export leaves it.
    for name in ("model.safetensors", "model.json", "progress.json"):
        (out / name).unlink()
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"unfinished"'))
    resumed = _train(recipe, dataset, out, 1)
    assert _progress(out)["iteration"] == 4
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-4, rtol=1e-4, msg=name)
