"""The fixed background threshold: 0.5 where CPM's loss separates objects from background, else 0.3."""

from pathlib import Path

import pytest
import torch

from ray_wsss.config import EvaluateConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.ops.cpm_loss import cpm_loss
from ray_wsss.runs.cam_threshold import WITH_CPM, fixed_threshold, trained_with_cpm
from ray_wsss.runs.dependencies import settings_of
from ray_wsss.runs.manifest import Output


def train(out: Path, recipe: Recipe) -> Path:
    """A folder with the manifest of a training; it needs no network here."""
    Output(out, "train-classifier", settings_of(recipe, "classifier", "cpm")).begin()
    return out


def test_the_settings_come_first():
    for with_cpm in (True, False):
        assert fixed_threshold(EvaluateConfig(cam_threshold=0.42), with_cpm=with_cpm) == 0.42
    assert fixed_threshold(EvaluateConfig(), with_cpm=True) == 0.5
    assert fixed_threshold(EvaluateConfig(), with_cpm=False) == 0.3


@pytest.mark.parametrize("preset", PRESETS)
def test_only_photographs_have_a_threshold_of_their_own(preset: str):
    found = [fixed_threshold(PRESETS[preset].evaluate, with_cpm=with_cpm) for with_cpm in (True, False)]
    assert found == ([0.3, 0.3] if preset == "photos" else [0.5, 0.3])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_classifier_tells_whether_cpm_trained_it(preset: str, tmp_path: Path):
    recipe = PRESETS[preset]
    assert trained_with_cpm(train(tmp_path / "with", recipe))
    assert not trained_with_cpm(train(tmp_path / "without", override(recipe, {"cpm.enabled": False})))
    late = override(recipe, {"cpm.warmup_iters": recipe.classifier.max_iters})
    assert not trained_with_cpm(train(tmp_path / "never_started", late))


def test_a_folder_that_does_not_tell_has_no_cpm(tmp_path: Path):
    assert not trained_with_cpm(tmp_path)
    Output(tmp_path / "benchmark", "train-classifier", {"benchmark": 200}).begin()
    assert not trained_with_cpm(tmp_path / "benchmark")


@pytest.mark.parametrize("temperature", [0.15, 1.0])
def test_cpms_loss_pushes_both_ways_from_the_threshold(temperature: float):
    """Above it, calling the pixel an object costs less; below it, calling it background does."""
    for value, cheaper in ((WITH_CPM - 0.01, 0), (WITH_CPM + 0.01, 1)):
        cam = torch.full((1, 1, 1, 1), value)
        cost = [float(cpm_loss(cam, torch.full((1, 1, 1), label), temperature)) for label in (0, 1)]
        assert cost.index(min(cost)) == cheaper
