"""The demo in miniature: every stage once, its figures and its picture, and running it again."""

import json
import time
from pathlib import Path

import pytest

from ray_wsss import demo
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override

FIGURES = {
    "cam_plain_miou",
    "cam_cpm_miou",
    "pseudo_label_plain_miou",
    "pseudo_label_miou",
    "segmenter_miou",
    "seconds",
}


@pytest.mark.usefixtures("ray_cluster")
def test_demo_and_again(small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAIN_SCENES", 16)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 8)
    recipe = override(small_recipe, {"evaluate.cam_threshold": 0.3})
    metrics = demo.run_demo(tmp_path / "demo", recipe=recipe)
    assert metrics.keys() >= FIGURES
    assert all(isinstance(metrics[name], float) for name in FIGURES)
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text()) == metrics
    picture = tmp_path / "demo" / "overview.png"
    assert picture.read_bytes().startswith(b"\x89PNG")

    started = time.perf_counter()
    again = demo.run_demo(tmp_path / "demo", recipe=recipe)
    assert time.perf_counter() - started < metrics["seconds"] / 2
    assert {name: again[name] for name in FIGURES - {"seconds"}} == {
        name: metrics[name] for name in FIGURES - {"seconds"}
    }
