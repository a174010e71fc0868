"""Eval mode for a while: every module gets back the mode that it had."""

import pytest
from torch import nn

from ray_wsss.models.modes import eval_mode


def make_mixed() -> nn.Sequential:
    """A network in train mode with a frozen norm, and with a block in eval mode whose children train."""
    block = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout())
    model = nn.Sequential(nn.BatchNorm2d(2), block, nn.ReLU()).train()
    model[0].eval()
    block.training = False
    return model


def test_every_module_gets_its_own_mode_back():
    model = make_mixed()
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before


def test_an_error_inside_does_not_leave_eval_mode():
    model = make_mixed()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        _ = 1 / 0
    assert [module.training for module in model.modules()] == before
