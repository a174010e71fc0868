"""Trainings that start from a text head, or read stored features, resume bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from narrow_clip import BACKBONE, write_clip
from recorded_sessions import Interrupted, Recorder, final, values

from ray_wsss.cluster.stages.extract_features import run_extract_features
from ray_wsss.config import FeaturesConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.models import backbone as backbone_module
from ray_wsss.training.classifier import train_classifier

RECIPE = override(
    PRESETS["demo"],
    {
        "classifier.max_iters": 4,
        "classifier.batch_size": 4,
        "classifier.checkpoint_every": 2,
        "classifier.log_every": 1,
        "classifier.feature_dim": 16,
        "classifier.augment.long_side_px": (56, 72),
        "classifier.augment.crop_px": 64,
        "cpm.warmup_iters": 1,
        "cpm.min_distance_px": 4,
    },
)


def assert_resumes(recipe: Recipe, dataset: Path, out: Path, **views: Any) -> None:
    """A run that dies after its third iteration goes on from the second, to the weights of a whole one."""
    whole = Recorder(out / "whole")
    train_classifier(recipe, dataset, whole, **views)
    with pytest.raises(Interrupted):
        train_classifier(recipe, dataset, Recorder(out / "cut", die_at=3), **views)
    resumed = Recorder(out / "cut")
    torch.manual_seed(123)  # what another process would have drawn by then
    train_classifier(recipe, dataset, resumed, **views)
    assert [m["iteration"] for m in resumed.metrics] == [3, 4]
    assert values(resumed.metrics) == values(whole.metrics)[2:]
    ours, theirs = final(resumed), final(whole)
    assert ours.pop("name") == theirs.pop("name")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_text_head_resumes_bit_identical(scene_dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(backbone_module._SMALL, "clip", BACKBONE)
    (tmp_path / "clip").mkdir()
    write_clip(tmp_path / "clip")
    changes = {
        "classifier.backbone": "clip",
        "classifier.output_stride": 16,
        "classifier.text_head": str(tmp_path / "clip"),
    }
    assert_resumes(override(RECIPE, changes), scene_dataset, tmp_path)


def test_stored_features_resume_bit_identical(scene_dataset, make_views, tmp_path):
    """With CPM on SAM's embeddings, and SSC."""
    recipe = override(RECIPE, {"classifier.freeze_stages": "all", "cpm.view": "image"})
    run_extract_features(
        recipe,
        features=FeaturesConfig(sides_px=(64,)),
        dataset=scene_dataset,
        out=tmp_path / "features",
        resources=Resources(actors=0),
        cluster=Cluster(),
    )
    assert_resumes(recipe, scene_dataset, tmp_path, features=tmp_path / "features", **make_views("fp16"))
