"""What a training worker holds of SAM."""

import gc
from dataclasses import replace

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.training.classifier import _load_cpm
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.local_session import LocalSession
from ray_wsss.training.validation import CamValidation

CPU = torch.device("cpu")


def recipe_of(view: str) -> Recipe:
    return override(PRESETS["demo"], {"cpm.view": view, "sam.precision": "fp32"})


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def encoders() -> int:
    """Image encoders of SAM in this process."""
    gc.collect()
    return sum(type(found) is ImageEncoderViT for found in gc.get_objects())


def test_with_cached_embeddings_a_worker_holds_no_encoder(tiny_sam, tmp_path):
    before = encoders()
    cpm = _load_cpm(recipe_of("image"), LocalSession(tmp_path))
    assert encoders() == before
    assert parameters(cpm.sam) == parameters(tiny_sam) - parameters(tiny_sam.image_encoder)
    assert parameters(cpm.sam) < parameters(tiny_sam) / 5
    crops = _load_cpm(recipe_of("crop"), LocalSession(tmp_path))
    assert parameters(crops.sam) == parameters(tiny_sam)


@torch.no_grad()
def test_pictures_need_the_encoder_only_once(scene_dataset, make_classifier, tiny_sam, tmp_path, monkeypatch):
    """They equal those of a worker that has it."""
    model = make_classifier(tuple("abcdef"))
    recipe = recipe_of("image")
    cpm = _load_cpm(recipe, LocalSession(tmp_path))
    before = encoders()
    validation = CamValidation(recipe, None, scene_dataset, cpm, CPU)
    assert encoders() == before
    first = validation.picture(model)
    assert first is not None
    assert encoders() == before
    with monkeypatch.context() as patch:
        patch.setattr("ray_wsss.training.validation.load_encoder", pytest.fail)
        second = validation.picture(model)
        assert second is not None
        assert (first == second).all()
        held = Cpm(SamEncoder(tiny_sam), replace(recipe.cpm, view="crop"))
        expected = CamValidation(recipe, None, scene_dataset, held, CPU).picture(model)
    assert expected is not None
    assert (first == expected).all()
    bare = CamValidation(recipe, None, scene_dataset, None, CPU).picture(model)
    assert bare is not None
    assert bare.shape != first.shape  # without pseudo labels
