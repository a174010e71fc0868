"""Classifier and segmenter, in memory and on disk."""

import json
import math
import shutil

import pytest
import torch
from torch.testing import assert_close

from ray_wsss.errors import UserError
from ray_wsss.models.classifier import ClassifierSpec, build_classifier
from ray_wsss.models.store import load_classifier, load_segmenter, read_class_names, save_model

IMAGES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def test_the_logits_are_the_means_of_the_class_maps(make_classifier):
    model = make_classifier()
    output = model(IMAGES)
    assert output.class_maps is None
    assert output.features.shape == (2, 16, 6, 8)
    assert output.features.min() == 0 < output.features.max()
    weight = model.to_class_maps.weight[:, :, 0, 0]
    maps = torch.einsum("cd,bdhw->bchw", weight, output.features)
    assert_close(output.logits, maps.mean(dim=(2, 3)))
    some = model(IMAGES, torch.tensor([[2, 0], [1, 1]])).class_maps
    assert_close(some, torch.stack([maps[0, [2, 0]], maps[1, [1, 1]]]))


def test_the_head_has_no_biases(make_classifier):
    model = make_classifier()
    heads = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert heads == {"to_features.weight", "to_class_maps.weight"}


def assert_unrounded(values: torch.Tensor) -> None:
    """Values are float32, and more than bfloat16 could tell apart."""
    assert values.dtype == torch.float32
    assert (values != values.bfloat16().float()).float().mean() > 0.5


def test_the_classifiers_head_is_not_rounded_by_mixed_precision(make_classifier):
    model, images = make_classifier(), IMAGES[:, :, :32, :32]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(images, torch.arange(3).expand(2, 3))
        backbone = model.backbone(images)
    assert backbone.dtype == torch.bfloat16  # else this would test nothing
    for values in (output.features[output.features > 0], output.class_maps, output.logits):
        assert_unrounded(values)
    features = torch.einsum("fd,bdhw->bfhw", model.to_features.weight[:, :, 0, 0], backbone.float()).relu()
    maps = torch.einsum("cf,bfhw->bchw", model.to_class_maps.weight[:, :, 0, 0], features)
    assert_close(output.features, features)
    assert_close(output.class_maps, maps)
    assert_close(output.logits, maps.mean(dim=(2, 3)))


def test_the_segmenters_logits_are_not_rounded_by_mixed_precision(segmenter_dir):
    model, _ = load_segmenter(segmenter_dir)
    seen: list[torch.Tensor] = []
    last = model.head
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(IMAGES[:, :, :32, :32])
    assert seen[0].dtype == torch.bfloat16
    assert_unrounded(logits)
    weight = last.get_parameter("weight")[:, :, 0, 0]
    expected = torch.einsum("kd,bdhw->bkhw", weight, seen[0].float())
    assert_close(logits, expected + last.get_parameter("bias")[:, None, None])


@pytest.mark.parametrize("name", ["to_features.weight", "to_class_maps.weight"])
def test_the_head_starts_from_xaviers_uniform_distribution(name):
    """Its bound is sqrt(6 / (inputs + outputs)); a uniform distribution's deviation is bound / sqrt(3)."""
    spec = ClassifierSpec(
        class_names=tuple(map(str, range(80))), backbone="resnet_small", output_stride=8, feature_dim=256
    )
    torch.manual_seed(0)
    weight = build_classifier(spec).get_parameter(name).detach()
    bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(weight.mean()) < 0.03 * bound


def test_classifier_round_trip(make_classifier, classifier_dir):
    loaded, spec = load_classifier(classifier_dir)
    assert spec.class_names == tuple("abcdef")
    assert read_class_names(classifier_dir, "classifier") == spec.class_names
    assert not loaded.training
    assert torch.equal(loaded(IMAGES).logits, make_classifier(tuple("abcdef"))(IMAGES).logits)


def test_segmenter_round_trip(segmenter_dir, tmp_path):
    model, spec = load_segmenter(segmenter_dir)
    logits = model(IMAGES)
    assert logits.shape == (2, 7, 6, 8)
    save_model(model, spec, tmp_path)
    again, same = load_segmenter(tmp_path)
    assert same == spec
    assert torch.equal(again(IMAGES), logits)


def test_unusable_folders_are_user_errors(classifier_dir, segmenter_dir, tmp_path):
    with pytest.raises(UserError, match="holds a segmenter; expected a classifier"):
        load_classifier(segmenter_dir)
    with pytest.raises(UserError, match="holds a classifier; expected a segmenter"):
        load_segmenter(classifier_dir)
    with pytest.raises(UserError, match="holds no trained classifier"):
        load_classifier(tmp_path / "absent")
    broken = tmp_path / "broken"
    shutil.copytree(classifier_dir, broken)
    description = json.loads((broken / "model.json").read_text())
    (broken / "model.json").write_text(json.dumps(description | {"feature_dim": 8}))
    with pytest.raises(UserError, match=r"model.safetensors does not fit model.json"):
        load_classifier(broken)
    (broken / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model.safetensors can't be read"):
        load_classifier(broken)
    (broken / "model.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        load_classifier(broken)
