"""SSC against one pixel at a time, for images with different numbers of segments."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss.ops import ssc
from ray_wsss.ops.ssc import segment_bounds, ssc_loss


def slow_ssc(features: torch.Tensor, segments: torch.Tensor, temperature: float) -> torch.Tensor:
    losses = []
    for feature, ids in zip(features, segments):
        resized = F.interpolate(feature[None], ids.shape, mode="bilinear", align_corners=False)[0]
        directions = resized / resized.norm(dim=0, keepdim=True)
        names = [n for n in ids.unique().tolist() if n]
        prototypes = {}
        for n in names:
            mean = directions.detach()[:, ids == n].mean(1)
            prototypes[n] = mean / mean.norm()
        for y in range(ids.shape[0]):
            for x in range(ids.shape[1]):
                if ids[y, x]:
                    scores = [directions[:, y, x] @ prototypes[n] / temperature for n in names]
                    losses.append(
                        torch.logsumexp(torch.stack(scores), 0) - scores[names.index(int(ids[y, x]))]
                    )
    return torch.stack(losses).mean()


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def segments() -> torch.Tensor:
    """Three images with 9, 2 and no segments; gaps in the ids, and uncovered pixels."""
    generator = torch.Generator().manual_seed(1)
    many = torch.randint(0, 10, (8, 10), generator=generator)
    few = torch.randint(0, 2, (8, 10), generator=generator) * 40
    few[:2] = 7
    return torch.stack([many, few, torch.zeros(8, 10, dtype=torch.long)]).int()


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("block", [ssc.BLOCK, 100, 1])
def test_loss_and_gradient_equal_the_slow_ones(features, segments, temperature, block, monkeypatch):
    monkeypatch.setattr(ssc, "BLOCK", block)
    loss = ssc_loss(features, segments, temperature)
    expected = slow_ssc(features, segments, temperature)
    assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, features)
    (expected_gradient,) = torch.autograd.grad(expected, features)
    assert_close(gradient, expected_gradient)
    assert gradient[:2].abs().sum() > 0
    assert not gradient[2].any()


def test_bounds_are_the_largest_id_and_number(segments):
    expected = max(len(ids[ids > 0].unique()) for ids in segments)
    assert segment_bounds(segments) == (40, expected)
    assert segment_bounds(torch.zeros(2, 3, 3, dtype=torch.int32)) == (0, 0)
    assert segment_bounds(torch.zeros(0, 3, 3, dtype=torch.int32)) == (0, 0)


@pytest.mark.parametrize("more", [0, 1, 30])
def test_bounds_given_or_found_or_too_wide(features, segments, more):
    largest, most = segment_bounds(segments)
    expected = ssc_loss(features, segments)
    loss = ssc_loss(features, segments, bounds=(largest + more, most + more))
    assert_close(loss, expected, rtol=0, atol=0 if more == 0 else 1e-6)
    gradients = [torch.autograd.grad(value, features)[0] for value in (loss, expected)]
    assert_close(*gradients)


def test_names_of_segments_do_not_matter(features, segments):
    renamed = torch.where(segments > 0, 65_535 - segments, 0)
    assert_close(ssc_loss(features, renamed), ssc_loss(features, segments))


def test_no_segment_anywhere(features):
    loss = ssc_loss(features, torch.zeros(3, 8, 10, dtype=torch.int32))
    assert loss == 0
    loss.backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_one_segment_per_image_has_nothing_to_contrast(features):
    assert_close(ssc_loss(features, torch.ones(3, 8, 10, dtype=torch.int32)), torch.tensor(0.0))


def test_a_thousand_segments_leave_no_similarities_behind():
    """Of 256 x 256 pixels to 1,000 segments they would take 262 MB; the features themselves take 2 MB."""
    features = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    segments = torch.randint(1, 1001, (1, 256, 256), generator=torch.Generator().manual_seed(1))
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = ssc_loss(features, segments)
    assert kept < 30e6
    loss.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
