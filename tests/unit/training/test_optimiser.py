"""The optimiser's two groups, backbone and head, and the rates at which they learn."""

from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch.testing import assert_close

from ray_wsss.config import ClassifierConfig
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import ClassifierSpec, build_classifier
from ray_wsss.training.optimiser import build_optimiser, learning_rate, load_optimiser, schedule_rates

CONFIG = ClassifierConfig(
    lr=0.1, head_lr_factor=10.0, weight_decay=0.0, max_iters=20, lr_warmup_iters=4, poly_power=2.0
)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_heads_step_is_ten_times_as_large(make_classifier, name: Literal["sgd", "adamw"]):
    """With the same gradient everywhere."""
    model = make_classifier()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimiser = build_optimiser(model, replace(CONFIG, optimiser=name, lr=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimiser.step()
    unit = 0.5 if name == "sgd" else 1.0  # AdamW's first step has the gradient's sign alone
    for key, parameter in model.named_parameters():
        factor = 1 if key.startswith("backbone.") else 10
        step = before[key] - parameter.detach()
        assert_close(step, torch.full_like(step, factor * 1e-3 * unit), rtol=1e-3, atol=1e-6, msg=key)


def test_both_groups_follow_the_schedule(make_classifier):
    model = make_classifier()
    optimiser = build_optimiser(model, CONFIG)
    backbone, head = optimiser.param_groups
    assert len(backbone["params"]) + len(head["params"]) == len(list(model.parameters()))
    assert head["params"] == [model.to_features.weight, model.to_class_maps.weight]
    for iteration in (0, 3, 12):
        schedule_rates(optimiser, CONFIG, iteration)
        expected = learning_rate(CONFIG, iteration)
        assert (backbone["lr"], head["lr"]) == (expected, 10 * expected)


def test_earlier_stages_learn_more_slowly(make_classifier):
    model = make_classifier()
    model.backbone.freeze(1, norm=False)
    config = replace(CONFIG, layer_decay=0.5)
    optimiser = build_optimiser(model, config)
    schedule_rates(optimiser, config, 3)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    steps = {"layer2": 0.25, "layer3": 0.5, "layer4": 1.0}
    for name, parameter in model.named_parameters():
        part, network, stage, *_ = [*name.split("."), "", ""]
        if part != "backbone":
            assert rates[id(parameter)] == 10 * learning_rate(config, 3)
        elif stage in steps:
            assert network == "network"
            assert rates[id(parameter)] == steps[stage] * learning_rate(config, 3)
        else:  # frozen
            assert id(parameter) not in rates


def test_stages_that_are_not_known_have_no_rates_of_their_own():
    spec = ClassifierSpec(class_names=("a",), backbone="vgg11", output_stride=32, feature_dim=4)
    with torch.device("meta"):
        model = build_classifier(spec)
    with pytest.raises(UserError, match=r"layer_decay is 0\.5; expected 1, since this backbone's stages"):
        build_optimiser(model, replace(CONFIG, layer_decay=0.5))


def test_frozen_weights_are_in_no_group(make_classifier):
    model = make_classifier()
    model.backbone.freeze(1, True)
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    groups = build_optimiser(model, CONFIG).param_groups
    trained = [id(p) for group in groups for p in group["params"]]
    assert frozen
    assert not frozen & set(trained)
    assert len(frozen) + len(trained) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_single_group_of_version_0_1_loads(make_classifier, name: Literal["sgd", "adamw"]):
    """An optimiser as that version built it, and ours with its state, make the same next step."""
    config = replace(CONFIG, optimiser=name, momentum=0.9, head_lr_factor=1.0)
    old_model, model = make_classifier(), make_classifier()
    kinds: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.0),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
    }
    old, ours = kinds[name](list(old_model.parameters())), build_optimiser(model, config)
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        for p, q in zip(old_model.parameters(), model.parameters()):
            p.grad = torch.rand(p.shape, generator=generator)
            q.grad = p.grad.clone()
        if step == 2:
            model.load_state_dict(old_model.state_dict())
            load_optimiser(ours, deepcopy(old.state_dict()))
            ours.step()
        old.step()
    for p, q in zip(old_model.parameters(), model.parameters()):
        assert torch.equal(p, q)
