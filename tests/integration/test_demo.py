"""The demo in miniature: every stage once, its figures and its pictures, and running it again."""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import TRAINING_HERE
from ray_wsss.data.reader import ShardReader
from ray_wsss.demo.run import run_demo

FIGURES = {
    "cam_plain_miou",
    "cam_cpm_miou",
    "pseudo_label_plain_miou",
    "pseudo_label_miou",
    "segmenter_miou",
    "seconds",
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the demo's classifiers do; the number decides the last digits of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("ray_cluster")
def test_demo_and_again(small_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = override(small_recipe, {"cpm.view": "image"})
    out = tmp_path / "demo"
    with caplog.at_level(logging.INFO, "ray_wsss"):
        metrics = run_demo(out, recipe=recipe, scenes=(16, 8))
    assert metrics.keys() >= FIGURES
    assert all(isinstance(metrics[name], float) for name in FIGURES)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    steps = metrics["seconds_by_step"]
    assert max(steps.values()) <= metrics["seconds"] <= sum(steps.values()) + 60
    fixed = {name: found["cam_fixed"]["threshold"] for name, found in metrics["details"].items()}
    assert fixed == {"plain": 0.3, "cpm": 0.5}
    widths = []
    for name in ("first_look", "overview"):
        with Image.open(out / f"{name}.png") as picture:
            widths.append(picture.width)
    assert widths[0] < widths[1]  # a column for each stage
    assert "<html" in (out / "report.html").read_text()[:200]
    assert json.loads((out / "embeddings" / "manifest.json").read_text())["state"] == "finished"
    lines = caplog.text.splitlines()
    done = [what for what in ("train on: done", "with CPM: done", "report: done") for s in lines if what in s]
    assert done[0] == "train on: done"
    assert done[-1] == "report: done"

    weights = (out / "classifier_cpm" / "model.safetensors").read_bytes()
    alone = tmp_path / "alone"  # its warm-up is not shared with the classifier without CPM
    with one_thread():
        run_train_classifier(
            recipe, dataset=out / "train", embeddings=out / "embeddings", out=alone, **TRAINING_HERE
        )
    assert (alone / "model.safetensors").read_bytes() == weights

    (out / "segmenter" / "manifest.json").unlink()
    for file in sorted((out / "segmenter").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    started = time.perf_counter()
    again = run_demo(out, recipe=recipe, scenes=(16, 8))
    assert time.perf_counter() - started < metrics["seconds"]
    assert again["details"] == metrics["details"]  # the segmenter, which was made again, included
    assert (out / "classifier_cpm" / "model.safetensors").read_bytes() == weights


FAST = """
preset = "photos"
[classifier]
max_iters = 2
batch_size = 4
loader_workers = 0
[classifier.augment]
long_side_px = [96, 128]
crop_px = 96
[cpm]
warmup_iters = 1
[label]
max_side_px = 128
flip = false
[segmenter]
max_iters = 1
batch_size = 2
loader_workers = 0
[segmenter.augment]
long_side_px = [96, 128]
crop_px = 96
[predict]
max_side_px = 128
"""


@pytest.fixture(scope="module")
def photos(genuine_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve COCO photographs with a cat or a dog, as COCO lays them out, and their folders by class."""
    root, coco = tmp_path_factory.mktemp("photos"), genuine_data / "coco"
    content = json.loads((coco / "annotations" / "instances_train.json").read_text())
    content["categories"] = [c for c in content["categories"] if c["name"] in ("cat", "dog")]
    names = {category["id"]: category["name"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in names]
    chosen = {a["image_id"]: names[a["category_id"]] for a in content["annotations"][:40]}
    content["images"] = [image for image in content["images"] if image["id"] in chosen][:12]
    content["annotations"] = [
        a for a in content["annotations"] if any(a["image_id"] == i["id"] for i in content["images"])
    ]
    for image in content["images"]:
        for folder in ("coco/val", f"folders/{chosen[image['id']]}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(coco / "images" / image["file_name"], root / folder)
    (root / "coco" / "annotations").mkdir()
    (root / "coco" / "annotations" / "instances.json").write_text(json.dumps(content))
    (root / "fast.toml").write_text(FAST)
    return root


@pytest.mark.usefixtures("ray_cluster")
def test_demo_on_photographs_with_masks(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    arguments = ["--photos", str(photos / "coco"), "--config", str(photos / "fast.toml"), "--out", str(out)]
    assert main(["demo", *arguments]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() >= FIGURES
    assert metrics["details"]["cpm"]["pseudo_label"]["images"] == 3  # a quarter of them
    assert len(ShardReader(out / "train")) == 9
    for name in ("first_look", "overview"):
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 300
    assert json.loads((out / "embeddings" / "manifest.json").read_text())["depends_on"]["sam.name"] == "lite"
    shown = capsys.readouterr().out
    assert "mIoU in % on held-out images" in shown
    assert "--coco" in shown

    assert main(["demo", *arguments, "--seed", "1"]) == 1  # another run's folder
    assert "seed" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_demo_on_photographs_in_class_folders(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    folders = ["--photos", str(photos / "folders")]
    assert main(["demo", *folders, "--config", str(photos / "fast.toml"), "--out", str(out)]) == 0
    assert json.loads((out / "metrics.json").read_text()).keys() == {"seconds", "seconds_by_step"}
    assert (out / "overview.png").is_file()
    assert "<html" in (out / "report.html").read_text()[:200]
    shown = capsys.readouterr().out
    assert "no scores, since the photographs have no masks" in shown
    assert f"run-all --folder {photos / 'folders'} --out" in shown

    assert main(["demo", *folders, "--out", str(photos / "folders" / "demo")]) == 1
    assert "expected a folder apart from the images" in capsys.readouterr().err
