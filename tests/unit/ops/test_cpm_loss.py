"""CPM's loss against a per-pixel reference and finite differences."""

import math

import pytest
import torch
from torch.testing import assert_close

from ray_wsss.ops.cpm_loss import cpm_loss


def slow_cpm_loss(cam: torch.Tensor, pseudo_label: torch.Tensor, temperature: float) -> float:
    """Softmax cross-entropy pixel by pixel, in Python floats."""
    losses = []
    for b in range(cam.shape[0]):
        for y in range(cam.shape[2]):
            for x in range(cam.shape[3]):
                label = int(pseudo_label[b, y, x])
                if label == 255:
                    continue
                values = cam[b, :, y, x].tolist()
                logits = [v / temperature for v in (1 - max(values), *values)]
                losses.append(math.log(sum(math.exp(v) for v in logits)) - logits[label])
    return sum(losses) / len(losses)


@pytest.fixture
def cam() -> torch.Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def pseudo_label() -> torch.Tensor:
    labels = torch.randint(0, 5, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    return labels.masked_fill(labels == 4, 255).to(torch.uint8)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_cpm_equals_reference(cam: torch.Tensor, pseudo_label: torch.Tensor, temperature: float):
    assert set(pseudo_label.unique().tolist()) == {0, 1, 2, 3, 255}
    slow = slow_cpm_loss(cam, pseudo_label, temperature)
    assert cpm_loss(cam, pseudo_label, temperature).item() == pytest.approx(slow, rel=1e-12)
    assert_close(cpm_loss(cam, pseudo_label.long()), cpm_loss(cam, pseudo_label, 1.0))


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_cpm_gradient(cam: torch.Tensor, pseudo_label: torch.Tensor, temperature: float):
    assert torch.autograd.gradcheck(lambda c: cpm_loss(c, pseudo_label, temperature), (cam.requires_grad_(),))


def test_cpm_is_least_where_cam_and_label_agree():
    cam = torch.zeros(1, 2, 1, 2)
    cam[0, 1, 0, 1] = 1
    agree, swapped = torch.tensor([[[0, 2]]]), torch.tensor([[[2, 0]]])
    assert cpm_loss(cam, agree) < cpm_loss(cam, swapped)


def test_cpm_of_ignored_pixels_only_is_zero_with_a_graph(cam: torch.Tensor):
    cam.requires_grad_()
    loss = cpm_loss(cam, torch.full((2, 4, 5), 255, dtype=torch.uint8))
    assert loss.item() == 0
    loss.backward()
    assert cam.grad is not None
    assert torch.equal(cam.grad, torch.zeros_like(cam))


def test_cpm_does_not_see_the_value_of_ignored_pixels(cam: torch.Tensor, pseudo_label: torch.Tensor):
    changed = torch.where((pseudo_label == 255)[:, None], 1 - cam, cam)
    assert not torch.equal(changed, cam)
    assert_close(cpm_loss(changed, pseudo_label), cpm_loss(cam, pseudo_label))


@pytest.mark.parametrize("axis", [-1, -2])
def test_cpm_does_not_change_when_all_is_flipped(cam: torch.Tensor, pseudo_label: torch.Tensor, axis: int):
    assert_close(cpm_loss(cam.flip(axis), pseudo_label.flip(axis)), cpm_loss(cam, pseudo_label))


def test_cpm_shares_the_background_gradient_between_equal_classes():
    cam = torch.full((1, 2, 1, 1), 0.7, requires_grad=True)
    cpm_loss(cam, torch.zeros(1, 1, 1, dtype=torch.uint8)).backward()
    assert cam.grad is not None
    assert cam.grad[0, 0] == cam.grad[0, 1] > 0
