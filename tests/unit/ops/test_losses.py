"""The classification loss against a reference and finite differences; the sum of a step's losses."""

import math

import pytest
import torch

from ray_wsss.ops.losses import StepLosses, classification_loss


def test_classification_equals_reference():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 2, (3, 4), generator=generator).double()
    expected = [
        -math.log(1 / (1 + math.exp(-z if t else z)))
        for z, t in zip(logits.flatten().tolist(), labels.flatten().tolist())
    ]
    assert classification_loss(logits, labels).item() == pytest.approx(sum(expected) / 12, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: classification_loss(z, labels), (logits,))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value)


def test_step_losses_total_and_parts():
    losses = StepLosses(cls=scalar(1.0), ssc=scalar(2.0), cpm=scalar(4.0))
    assert losses.parts() == {"cls": scalar(1.0), "ssc": scalar(2.0), "cpm": scalar(4.0)}
    assert losses.total({"cls": 1.0, "ssc": 1.0, "cpm": 1.0}).item() == 7
    assert losses.total({"cls": 3.0, "ssc": 0.5, "cpm": 10.0}).item() == 44


def test_step_losses_leave_out_parts_that_are_off():
    losses = StepLosses(cls=scalar(1.0), ssc=None, cpm=scalar(4.0))
    assert list(losses.parts()) == ["cls", "cpm"]
    assert losses.total({"cls": 1.0, "ssc": 100.0, "cpm": 1.0}).item() == 5


def test_step_losses_keep_the_graph():
    cls, cpm = scalar(1.0).requires_grad_(), scalar(4.0).requires_grad_()
    StepLosses(cls=cls, ssc=None, cpm=cpm).total({"cls": 2.0, "cpm": 3.0}).backward()
    assert cls.grad is not None
    assert cpm.grad is not None
    assert (cls.grad.item(), cpm.grad.item()) == (2, 3)
