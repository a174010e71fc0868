"""The demo in miniature: every stage once, its figures and its pictures, and running it again."""

import json
import logging
import time
from pathlib import Path

import pytest
from PIL import Image

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.demo.run import run_demo

FIGURES = {
    "cam_plain_miou",
    "cam_cpm_miou",
    "pseudo_label_plain_miou",
    "pseudo_label_miou",
    "segmenter_miou",
    "seconds",
}


@pytest.mark.usefixtures("ray_cluster")
def test_demo_and_again(small_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = override(small_recipe, {"cpm.view": "image"})
    out = tmp_path / "demo"
    with caplog.at_level(logging.INFO, "ray_wsss"):
        metrics = run_demo(out, recipe=recipe, scenes=(16, 8))
    assert metrics.keys() >= FIGURES
    assert all(isinstance(metrics[name], float) for name in FIGURES)
    assert json.loads((out / "metrics.json").read_text()) == metrics
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
    (out / "segmenter" / "manifest.json").unlink()
    for file in sorted((out / "segmenter").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    started = time.perf_counter()
    again = run_demo(out, recipe=recipe, scenes=(16, 8))
    assert time.perf_counter() - started < metrics["seconds"]
    assert again["details"] == metrics["details"]  # the segmenter, which was made again, included
    assert (out / "classifier_cpm" / "model.safetensors").read_bytes() == weights
