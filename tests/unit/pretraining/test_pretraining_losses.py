"""The losses against other implementations."""

import numpy as np
import torch
from torchvision.ops import sigmoid_focal_loss

from ray_wsss.pretraining.losses import FOCAL_WEIGHT, KNOWN_WEIGHT, mask_losses, prompt_loss, reached_iou


def masks(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, 12, 12, generator=generator)
    return logits, torch.rand(6, 1, 12, 12, generator=generator) > 0.6


def test_mask_losses_are_focal_and_dice() -> None:
    logits, hard = masks(0)
    targets = hard.float()
    focal = sigmoid_focal_loss(logits, targets.expand_as(logits), alpha=-1, gamma=2).mean((2, 3))
    probability = logits.sigmoid().numpy()
    both = (probability * targets.numpy()).sum((2, 3))
    dice = 1 - (2 * both + 1) / (probability.sum((2, 3)) + targets.numpy().sum((2, 3)) + 1)
    torch.testing.assert_close(mask_losses(logits, targets), FOCAL_WEIGHT * focal + torch.from_numpy(dice))


def test_reached_iou() -> None:
    logits, hard = masks(1)
    found, truth = (logits > 0).numpy(), hard.numpy()
    expected = (found & truth).sum((2, 3)) / (found | truth).sum((2, 3))
    np.testing.assert_allclose(reached_iou(logits, hard.float()).numpy(), expected, rtol=1e-6)


def test_the_better_of_two_outputs_learns_and_the_third_learns_the_whole() -> None:
    logits, hard = masks(2)
    target = hard[:, 0].float()
    logits[:, 2] = 4 * target - 2  # nearly right, so of the outputs 1 and 2 it is the one that learns
    for weight, learning in ((0.0, {0, 2}), (KNOWN_WEIGHT, {0, 2, 3}), (1.0, {0, 2, 3})):
        asked = logits.clone().requires_grad_()
        loss, parts = prompt_loss(asked, torch.zeros(6, 4), target, 1 - target, torch.full((6,), weight))
        (gradient,) = torch.autograd.grad(loss, asked)
        assert {k for k in range(4) if gradient[:, k].any()} == learning
        assert parts["iou_of_best"] == 1
    # Against the gradient, output 3 becomes the whole, not the target.
    assert ((gradient[:, 3] > 0) == (target == 1)).all()


def test_predicted_iou_learns_the_iou_reached() -> None:
    logits, hard = masks(3)
    target, unknown = hard[:, 0].float(), torch.zeros(6)
    reached = reached_iou(logits, hard.float())
    asked = reached.clone().requires_grad_()
    loss, parts = prompt_loss(logits, asked, target, target, unknown)
    (gradient,) = torch.autograd.grad(loss, asked)
    assert not gradient.any()
    assert parts["iou_error"] == 0
    best = reached[:, 1:].max(1).values.mean().item()
    assert np.isclose(parts["iou_of_chosen"], best)
