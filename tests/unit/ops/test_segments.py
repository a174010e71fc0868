"""Painting segments against a loop over pixels."""

from itertools import permutations

import numpy as np
import pytest
import torch

from ray_wsss.ops.segments import MAX_SEGMENTS, number_segments, paint_segments, rank_masks

RULES = ("smallest_area", "highest_iou")


def slow_segments(masks: np.ndarray, predicted_iou: np.ndarray, rule: str) -> tuple[np.ndarray, list[int]]:
    """Segment map and the mask of each id, pixel by pixel."""
    count, height, width = masks.shape

    def strength(k: int) -> tuple[float, int]:  # least is strongest
        return (masks[k].sum() if rule == "smallest_area" else -predicted_iou[k], k)

    winners = {}
    for y in range(height):
        for x in range(width):
            covering = [k for k in range(count) if masks[k, y, x]]
            if covering:
                winners[y, x] = min(covering, key=strength)
    visible = sorted(set(winners.values()))
    segments = np.zeros((height, width), np.int32)
    for (y, x), k in winners.items():
        segments[y, x] = visible.index(k) + 1
    return segments, visible


def paint(masks: torch.Tensor, predicted_iou: torch.Tensor, rule, slice_size: int = 3):
    ranks = rank_masks(rule, masks.sum((1, 2)), predicted_iou)
    return paint_segments(iter(masks.split(slice_size)), ranks, (masks.shape[1], masks.shape[2]))


def random_masks(seed: int, count: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """Rectangles, many of equal area, some empty; IoUs of which many are equal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 9, 11), bool)
    for mask in masks:
        y, x = rng.integers(0, 7, 2)
        height, width = rng.integers(0, 6, 2)
        mask[y : y + height, x : x + width] = True
    return torch.from_numpy(masks), torch.from_numpy(rng.integers(0, 4, count) / 4).float()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_equals_reference(rule, seed: int):
    masks, iou = random_masks(seed)
    expected, expected_index = slow_segments(masks.numpy(), iou.numpy(), rule)
    assert 1 < len(expected_index) < len(masks)
    for slice_size in (1, 3, len(masks)):
        segments, mask_index = paint(masks, iou, rule, slice_size)
        assert segments.dtype == torch.int32
        np.testing.assert_array_equal(segments.numpy(), expected)
        assert mask_index.tolist() == expected_index


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_masks_matters_for_ties_only(rule, seed: int):
    masks, _ = random_masks(seed)
    by_area = {int(mask.sum()): mask for mask in masks}  # one mask per area
    masks = torch.stack(list(by_area.values()))
    iou = torch.linspace(0, 1, len(masks))
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(masks), generator=generator)
    segments, mask_index = paint(masks, iou, rule)
    again, again_index = paint(masks[shuffled], iou[shuffled], rule)
    # Who holds each pixel, -1 for none, must agree.
    nobody = torch.tensor([-1])
    assert torch.equal(
        torch.cat([nobody, mask_index])[segments], torch.cat([nobody, shuffled[again_index]])[again]
    )


def test_the_two_rules_differ_and_a_tie_goes_to_the_earlier_mask():
    whole = torch.ones(1, 4, dtype=torch.bool)
    left, middle = whole.clone(), whole.clone()
    left[:, 2:] = False
    middle[:, [0, 3]] = False
    masks, iou = torch.stack([whole, left, middle]), torch.tensor([0.9, 0.8, 0.8])
    segments, mask_index = paint(masks, iou, "smallest_area")
    assert segments.tolist() == [[2, 2, 3, 1]]
    assert mask_index.tolist() == [0, 1, 2]
    segments, mask_index = paint(masks[[0, 2, 1]], iou[[0, 2, 1]], "smallest_area")
    assert segments.tolist() == [[3, 2, 2, 1]]
    segments, mask_index = paint(masks, iou, "highest_iou")
    assert segments.tolist() == [[1, 1, 1, 1]]
    assert mask_index.tolist() == [0]
    segments, mask_index = paint(masks[1:], iou[1:], "highest_iou")
    assert segments.tolist() == [[1, 1, 2, 0]]


def test_hidden_pixels_count_for_the_area():
    """The area is that of the full mask: being overpainted doesn't make a mask smaller."""
    masks = torch.zeros(3, 1, 8, dtype=torch.bool)
    masks[0, :, 0:6] = True  # 6 pixels, of which mask 1 hides 4
    masks[1, :, 0:4] = True
    masks[2, :, 4:9] = True  # 4 pixels, two in common with mask 0
    for order in permutations(range(3)):
        segments, mask_index = paint(masks[list(order)], torch.ones(3), "smallest_area")
        held = [order[k] for k in mask_index[segments[0] - 1].tolist()]
        assert held == [1, 1, 1, 1, 2, 2, 2, 2]


def test_no_masks():
    empty = torch.zeros(0, 3, 5, dtype=torch.bool)
    for slices in ([], [empty]):
        ranks = rank_masks("smallest_area", torch.zeros(0, dtype=torch.long), torch.zeros(0))
        segments, mask_index = paint_segments(slices, ranks, (3, 5))
        assert segments.tolist() == [[0] * 5] * 3
        assert len(mask_index) == 0


@pytest.mark.parametrize("given", [1, 3])
def test_masks_and_ranks_must_match(given: int):
    with pytest.raises(ValueError, match=f"slices hold {given} masks; expected 2"):
        paint_segments([torch.ones(given, 2, 2, dtype=torch.bool)], torch.arange(2), (2, 2))


def test_at_most_65535_segments_are_visible():
    winners = torch.arange(MAX_SEGMENTS + 1).view(256, 256)
    with pytest.raises(ValueError, match="image has 65536 segments"):
        number_segments(winners, MAX_SEGMENTS + 1)
    winners[0, 0] = 70_000  # nobody's; of the 70,000 masks 65,535 are visible
    segments, mask_index = number_segments(winners, 70_000)
    assert segments.max() == MAX_SEGMENTS
    assert torch.equal(segments, winners.int().masked_fill(winners == 70_000, 0))
    assert torch.equal(mask_index, torch.arange(1, MAX_SEGMENTS + 1))
