"""CAMs against a per-pixel reference, and their symmetries."""

import math

import pytest
import torch
from torch.testing import assert_close

from ray_wsss.ops.cam import make_cam, merge_scales, normalise_cam


def slow_resize(plane: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Bilinear interpolation pixel by pixel: half-pixel centres, clamped at the border."""
    rows, columns = plane.shape
    out = torch.zeros(size_hw, dtype=plane.dtype)
    for i in range(size_hw[0]):
        for j in range(size_hw[1]):
            y = min(max((i + 0.5) * rows / size_hw[0] - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / size_hw[1] - 0.5, 0), columns - 1)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            a, b = y - top, x - left
            upper = (1 - b) * plane[top, left] + b * plane[top, right]
            lower = (1 - b) * plane[bottom, left] + b * plane[bottom, right]
            out[i, j] = (1 - a) * upper + a * lower
    return out


def slow_normalise(plane: torch.Tensor, label: float) -> torch.Tensor:
    highest = max(float(value) for value in plane.flatten())
    return torch.tensor(
        [[float(value) / (highest + 1e-5) * label for value in row] for row in plane]
    ).double()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def class_maps(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)


LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_normalise_equals_reference(class_maps: torch.Tensor):
    activation = class_maps.relu()
    cam = normalise_cam(activation, LABELS)
    for b in range(2):
        for c in range(3):
            assert_close(cam[b, c], slow_normalise(activation[b, c], LABELS[b, c].item()))


def test_normalise_bounds(class_maps: torch.Tensor):
    cam = normalise_cam(1e3 * class_maps.relu(), LABELS)
    assert cam.min() == 0
    assert cam.max() < 1
    assert_close(cam.amax(dim=(2, 3)), LABELS, atol=1e-5, rtol=0)


def test_a_class_without_activation_is_zero_not_nan():
    assert_close(normalise_cam(torch.zeros(1, 2, 3, 3), torch.ones(1, 2)), torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("size_hw", [(9, 7), (4, 5), (3, 11)])
def test_make_cam_equals_reference(class_maps: torch.Tensor, size_hw: tuple[int, int]):
    cam = make_cam(class_maps, LABELS, size_hw)
    for b in range(2):
        for c in range(3):
            plane = slow_normalise(class_maps[b, c].clamp(min=0), LABELS[b, c].item())
            assert_close(cam[b, c], slow_resize(plane, size_hw))


def test_merge_scales_equals_reference(class_maps: torch.Tensor, generator: torch.Generator):
    larger = torch.randn(2, 3, 8, 9, generator=generator, dtype=torch.float64)
    cam = merge_scales([class_maps, larger], LABELS, (6, 7))
    for b in range(2):
        for c in range(3):
            summed = sum(slow_resize(maps[b, c].clamp(min=0), (6, 7)) for maps in (class_maps, larger))
            assert isinstance(summed, torch.Tensor)
            assert_close(cam[b, c], slow_normalise(summed, LABELS[b, c].item()))


def test_merge_scales_leaves_its_input_alone(class_maps: torch.Tensor):
    before = class_maps.clone()
    merge_scales([class_maps, class_maps], LABELS, (4, 5))
    assert torch.equal(class_maps, before)


def test_merge_scales_refuses_nothing():
    with pytest.raises(ValueError, match="at least one scale"):
        merge_scales([], torch.ones(1, 1), (4, 4))


@pytest.mark.parametrize("axis", [-1, -2])
def test_flipping_the_class_maps_flips_the_cam(class_maps: torch.Tensor, axis: int):
    cam = make_cam(class_maps, LABELS, (9, 13))
    assert_close(make_cam(class_maps.flip(axis), LABELS, (9, 13)), cam.flip(axis))


def test_make_cam_is_differentiable(class_maps: torch.Tensor):
    # Also through the maximum, so gradcheck must agree with finite differences everywhere.
    inputs = class_maps[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: make_cam(maps, LABELS[:1], (6, 7)), (inputs,))


def test_absent_classes_get_no_gradient(class_maps: torch.Tensor):
    inputs = class_maps.clone().requires_grad_()
    make_cam(inputs, LABELS, (6, 7)).square().sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad.abs().sum(dim=(2, 3)) > 0).tolist() == LABELS.bool().tolist()
