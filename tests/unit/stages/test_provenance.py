"""What a result depends on, and embeddings that are another SAM's."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ray_wsss.config import Recipe, SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.sam.tiny import tiny_checkpoint
from ray_wsss.overrides import override
from ray_wsss.presets import PRESETS
from ray_wsss.stages.manifest import Output
from ray_wsss.stages.provenance import (
    dataset_settings,
    embeddings_settings,
    sam_settings,
    settings_of,
    with_absolute_paths,
)

DEMO = PRESETS["demo"]


def with_sam(sam: SamConfig) -> Recipe:
    return replace(DEMO, sam=sam)


@pytest.fixture
def embeddings(tmp_path, scene_dataset) -> Output:
    depends_on = settings_of(DEMO, "embed") | sam_settings(DEMO) | dataset_settings(scene_dataset)
    output = Output(tmp_path / "embeddings", "embed", depends_on)
    output.begin()
    output.finish()
    return output


def test_embeddings_of_the_same_sam(embeddings):
    settings = embeddings_settings(embeddings.out, DEMO)
    assert settings["embeddings.dtype"] == "fp16"
    same = with_sam(SamConfig(name="tiny", checkpoint=str(tiny_checkpoint())))
    assert embeddings_settings(embeddings.out, same) == settings


def test_embeddings_of_another_sam_are_refused_by_name(embeddings, tmp_path):
    other = with_sam(SamConfig(name="vit_b", checkpoint=str(tiny_checkpoint())))
    with pytest.raises(UserError, match=r"embeddings of SAM tiny; expected those of SAM vit_b \(sam\.name\)"):
        embeddings_settings(embeddings.out, other)
    weights = load_file(tiny_checkpoint())
    first = next(iter(weights))
    save_file(weights | {first: weights[first] + 1}, tmp_path / "other.safetensors")
    other = with_sam(SamConfig(name="tiny", checkpoint=str(tmp_path / "other.safetensors")))
    with pytest.raises(UserError, match="SAM tiny with other weights"):
        embeddings_settings(embeddings.out, other)


def test_unfinished_embeddings_are_refused(embeddings):
    embeddings.reopen()
    with pytest.raises(UserError, match="is unfinished: run the embed command"):
        embeddings_settings(embeddings.out, DEMO)


def test_batch_sizes_of_labelling_decide_nothing():
    changes = {"label.batch_size": 3, "label.cam_batch_size": 2, "sam.decode_batch_size": 1}
    assert settings_of(override(DEMO, changes), "label", "sam") == settings_of(DEMO, "label", "sam")
    assert "label.tau" in settings_of(DEMO, "label")
    assert settings_of(override(DEMO, {"label.tau": 0.9}), "label") != settings_of(DEMO, "label")


def test_the_batch_size_of_training_decides():
    assert settings_of(DEMO, "classifier")["classifier.batch_size"] == DEMO.classifier.batch_size


def test_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = with_sam(SamConfig(name="tiny", checkpoint="sam.safetensors"))
    assert with_absolute_paths(recipe).sam.checkpoint == str(Path(tmp_path) / "sam.safetensors")
    assert with_absolute_paths(DEMO) == DEMO
