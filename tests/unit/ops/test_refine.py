"""Refinement of class maps against loops over cells and pixels."""

import math

import pytest
import torch
from torch.testing import assert_close

from ray_wsss.ops.refine_maps import features as of_features
from ray_wsss.ops.refine_maps.colours import DILATIONS, refine_by_colour
from ray_wsss.ops.refine_maps.features import spread_by_features

GENERATOR = torch.Generator().manual_seed(0)
MAPS = torch.rand(2, 3, 5, 4, generator=GENERATOR)
FEATURES = torch.rand(2, 6, 5, 4, generator=GENERATOR)


def test_the_walk_is_the_weighted_mean_over_all_cells():
    got = spread_by_features(MAPS, FEATURES, steps=2, power=3.0)
    for b in range(2):
        cells = [(y, x) for y in range(5) for x in range(4)]
        mean = sum(FEATURES[b, :, y, x] for y, x in cells) / len(cells)
        vectors = [FEATURES[b, :, y, x] - mean for y, x in cells]
        values = [MAPS[b, :, y, x] for y, x in cells]
        for _ in range(2):
            walked = []
            for own in vectors:
                weights = [
                    max(0.0, float(own @ other / (own.norm() * other.norm()))) ** 3 for other in vectors
                ]
                walked.append(sum(w * v for w, v in zip(weights, values)) / sum(weights))
            values = walked
        for (y, x), value in zip(cells, values):
            assert_close(got[b, :, y, x], value)


def test_activations_fill_their_object_and_stay_in_it():
    """One seed in each of two regions of different features."""
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    features = torch.cat([left, 1 - left], 1) + 0.05 * torch.rand(1, 2, 8, 8, generator=GENERATOR)
    seeds = torch.zeros(1, 1, 8, 8)
    seeds[0, 0, 1, 2] = 1
    spread = spread_by_features(seeds, features, steps=3, power=8.0)[0, 0]
    assert spread[:, :4].min() > 10 * spread[:, 4:].max()
    assert spread[:, :4].min() > 0.5 * spread.max()


def test_many_cells_are_merged_for_the_walk(monkeypatch):
    """Of smooth maps and features little changes; the size of the maps stays."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 24), torch.linspace(0, 3, 30), indexing="ij")
    features = torch.stack([y.sin(), x.cos(), (x + y).sin()])[None]
    maps = (y * x).sin().relu()[None, None]
    expected = spread_by_features(maps, features, steps=1, power=4.0)
    monkeypatch.setattr(of_features, "MAX_CELLS", 200)
    got = spread_by_features(maps, features, steps=1, power=4.0)
    assert got.shape == maps.shape
    assert not torch.equal(got, expected)
    assert (got - expected).abs().mean() < 0.1 * (expected - expected.mean()).abs().mean()


def test_equal_features_give_no_nan():
    assert_close(
        spread_by_features(MAPS, torch.ones(2, 6, 5, 4), steps=3, power=4.0), MAPS, atol=1e-5, rtol=1e-5
    )


def slow_step(maps: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """One step of PAMR, pixel by pixel."""
    height, width = image.shape[1:]
    moves = [(d * y, d * x) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    result = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in moves]
            scores = []
            for at in near:
                closeness = []
                for channel in image:
                    colours = torch.stack([channel[y, x], *[channel[n] for n in near]])
                    deviation = float(((colours - colours.mean()) ** 2).sum() / (len(colours) - 1)) ** 0.5
                    closeness.append(-abs(float(channel[y, x] - channel[at])) / (1e-8 + 0.1 * deviation))
                scores.append(math.exp(sum(closeness) / 3))
            for weight, at in zip(scores, near):
                result[:, y, x] += maps[:, *at] * weight / sum(scores)
    return result


def test_colours_weigh_neighbours_as_pamr_says():
    image = torch.rand(1, 3, 4, 5, generator=GENERATOR)
    maps = torch.rand(1, 2, 4, 5, generator=GENERATOR)
    expected = slow_step(slow_step(maps[0], image[0]), image[0])
    assert_close(refine_by_colour(maps, image, steps=2)[0], expected, atol=1e-5, rtol=1e-4)


def test_maps_are_pulled_to_the_edge_of_a_colour():
    image = torch.full((1, 3, 32, 32), 0.2)
    image[..., 16:] = 0.8
    blurred = torch.linspace(1, 0, 32).expand(1, 1, 32, 32)
    refined = refine_by_colour(blurred, image, steps=10)[0, 0]
    before, after = (m[16, 15] - m[16, 16] for m in (blurred[0, 0], refined))
    assert after > 5 * before


@pytest.mark.parametrize("steps", [0])
def test_without_steps_nothing_changes(steps):
    assert spread_by_features(MAPS, FEATURES, steps=steps, power=1.0) is MAPS
    assert refine_by_colour(MAPS, MAPS, steps=steps) is MAPS
