"""The benchmark of training steps: its naive way gives our pseudo labels, its command its figures."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import default_collate

from ray_wsss.benchmark.naive_cpm import NaiveCpm
from ray_wsss.config import AugmentConfig, CpmConfig
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.crops import TrainingCrops

JOB = Path(__file__).parents[3] / "jobs" / "benchmark.py"
CONFIG = CpmConfig(tau=0.3, min_distance_px=4, scales=(1.0,))


def make_batch(dataset: Path, crop_px: int) -> dict:
    augment = AugmentConfig(long_side_px=(crop_px - 20, crop_px + 20), crop_px=crop_px)
    crops = TrainingCrops(dataset, list(range(14)), num_classes=6, augment=augment, seed=3)
    return default_collate([crops[(k, k)] for k in range(6)])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_output": "best_iou", "confidence": "iou"},
        {"keep_global_max": "always", "confidence": "stability"},
        {"keep_global_max": "never", "tau": 0.6},
        {"mask_threshold": -1.5},
    ],
)
def test_the_naive_pseudo_labels_are_ours(scene_dataset, make_classifier, tiny_sam, changes):
    config = replace(CONFIG, **changes)
    model = make_classifier(tuple("abcdef"))
    batch = make_batch(scene_dataset, IMAGE_SIZE_PX)
    # Crops of bytes, in SAM's size: both ways give its encoder the same input.
    batch["image"] = (batch["image"] * 255).round() / 255
    # A class that activates nowhere has no prompt.
    with torch.no_grad():
        model.to_class_maps.weight[0] = -model.to_class_maps.weight[0].abs()
    ours, naive = Cpm(SamEncoder(tiny_sam), config)(model, batch), NaiveCpm(tiny_sam, config)(model, batch)
    assert (batch["image_labels"][:, 0] > 0).any()
    assert not (naive == 1).any()
    assert len(naive.unique()) > 3
    assert (ours == naive).float().mean() > 0.9999


def test_rounding_and_resizing_change_little(scene_dataset, make_classifier, tiny_sam):
    model, batch = make_classifier(tuple("abcdef")), make_batch(scene_dataset, 64)
    ours, naive = Cpm(SamEncoder(tiny_sam), CONFIG)(model, batch), NaiveCpm(tiny_sam, CONFIG)(model, batch)
    assert (ours == naive).float().mean() > 0.99


@pytest.fixture
def job(monkeypatch, scene_dataset, classifier_dir) -> ModuleType:
    """The script, with small inputs."""
    spec = importlib.util.spec_from_file_location("benchmark_job", JOB)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, job)  # where the help's texts are looked up
    spec.loader.exec_module(job)
    monkeypatch.setattr(job, "make_dataset", lambda out, images: scene_dataset)
    monkeypatch.setattr(job, "make_classifier", lambda recipe, dataset, out: classifier_dir)
    return job


def test_the_command_gives_its_figures(job, tmp_path):
    path = tmp_path / "train.json"
    options = ["--batch-size", "3", "--steps", "1", "--work", str(tmp_path), "--json", str(path)]
    assert job.main(["train", *options]) == 0
    figures = json.loads(path.read_text())
    seconds = figures.pop("seconds_per_step")
    assert list(seconds) == ["cls", "cpm_crop", "cpm_image", "naive"]
    assert min(seconds.values()) > 0
    assert figures.pop("crop_over_image") == seconds["cpm_crop"] / seconds["cpm_image"]
    assert figures.pop("naive_over_crop") == seconds["naive"] / seconds["cpm_crop"]
    assert figures.pop("pseudo_label_agreement") > 0.99
    assert figures == {
        "sam": "tiny",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": 3,
        "crop_px": 96,
        "steps": 1,
    }


def test_embeddings_are_made_once(job, tmp_path, monkeypatch):
    options = ["train", "--batch-size", "2", "--steps", "1", "--work", str(tmp_path)]
    assert job.main(options) == 0
    monkeypatch.setattr("ray_wsss.benchmark.inputs.SamEmbedder", None)
    assert job.main(options) == 0


@pytest.mark.parametrize("command", [["train"], ["frozen", "--dataset", "nowhere"]])
def test_no_steps_are_refused(job, tmp_path, capsys, command):
    assert job.main([*command, "--steps", "0", "--work", str(tmp_path)]) == 1
    assert "; expected at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["label", "train"])
def test_help(job, command, capsys):
    with pytest.raises(SystemExit) as stopped:
        job.main([command, "--help"])
    assert stopped.value.code == 0
    assert "--sam {tiny,vit_b,vit_l,vit_h}" in capsys.readouterr().out
