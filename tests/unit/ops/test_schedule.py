"""Polynomial decay against torch's scheduler."""

import pytest
import torch

from ray_wsss.ops.schedule import poly_lr


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_equals_torch_polynomial_lr(power: float):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=20, power=power)
    for iteration in range(21):
        assert poly_lr(0.02, iteration, 20, power) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        scheduler.step()


def test_ends():
    assert poly_lr(0.02, 0, 100, 0.9) == 0.02
    assert poly_lr(0.02, 100, 100, 0.9) == 0


@pytest.mark.parametrize(
    ("iteration", "max_iters", "power", "message"),
    [
        (-1, 10, 0.9, "iteration is -1"),
        (11, 10, 0.9, "iteration is 11"),
        (0, 0, 0.9, "max_iters is 0"),
        (0, 10, 0.0, "power is 0"),
    ],
)
def test_out_of_range_is_refused(iteration: int, max_iters: int, power: float, message: str):
    with pytest.raises(ValueError, match=message):
        poly_lr(0.02, iteration, max_iters, power)
