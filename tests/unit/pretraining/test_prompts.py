"""Prompts for training: where clicks and boxes lie, and which objects they mean."""

import numpy as np
import pytest
import torch

from ray_wsss.pretraining.examples import MASK_STRIDE, Example, Examples
from ray_wsss.pretraining.losses import KNOWN_WEIGHT
from ray_wsss.pretraining.photos import Photo
from ray_wsss.pretraining.prompts import PromptedBatch, correct, pick_click, sample_batch

SIDE = 128


@pytest.fixture(scope="module")
def batches(photos: list[Photo]) -> list[PromptedBatch]:
    examples = Examples(photos)
    return [sample_batch(np.random.default_rng(seed), examples, 2, 5, SIDE) for seed in range(40)]


def at_points(masks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values of masks (N, h, w) at points (N, P, 2) in pixels of the frame."""
    columns, rows = (points / MASK_STRIDE).long().unbind(-1)
    return torch.stack([mask[r, c] for mask, r, c in zip(masks, rows, columns)])


def test_first_clicks_lie_in_their_object(batches: list[PromptedBatch]) -> None:
    clicked = [batch for batch in batches if batch.points is not None]
    assert len(clicked) > 20
    for batch in clicked:
        assert batch.points is not None
        assert batch.labels is not None
        assert batch.points.shape[0] == batch.targets.shape[0] == 10
        inside = at_points(batch.targets, batch.points) > 0.5
        assert (batch.labels[:, 0] == 1).all()
        assert (inside == (batch.labels == 1)).all()


def test_boxes_are_around_their_object(batches: list[PromptedBatch]) -> None:
    boxed = [batch for batch in batches if batch.boxes is not None]
    assert boxed
    for batch in boxed:
        assert batch.points is None
        assert batch.boxes is not None
        for target, box in zip(batch.targets.numpy(), batch.boxes.numpy() / MASK_STRIDE):
            rows, columns = np.nonzero(target > 0.5)
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            sides = np.tile(drawn[2:] - drawn[:2], 2)
            assert (np.abs(box - drawn) <= 0.1 * sides + 1e-4).all()


def test_all_kinds_occur(batches: list[PromptedBatch]) -> None:
    kinds = {None if batch.points is None else batch.points.shape[1] for batch in batches}
    assert {None, 1} < kinds
    assert kinds - {None, 1} <= {2, 3, 4}


def test_some_prompts_know_the_whole_object(batches: list[PromptedBatch]) -> None:
    weights = torch.cat([batch.whole_weights for batch in batches])
    assert {0.0, 1.0} <= set(weights.tolist()) <= {0.0, KNOWN_WEIGHT, 1.0}  # BSDS's segments are no objects
    for batch in batches:
        same = (batch.wholes == batch.targets).all(2).all(1)
        assert same[batch.whole_weights != KNOWN_WEIGHT].all()


def test_a_click_in_two_objects_means_the_larger() -> None:
    from ray_wsss.pretraining.prompts import _whole_at

    masks = np.zeros((3, 8, 8), np.float32)
    masks[0, 2:4, 2:4] = masks[1, 1:6, 1:6] = masks[2] = 1
    example = Example(
        np.zeros((32, 32, 3), np.uint8), (32, 32), masks, np.array([True, True, False]), np.zeros(3, np.int64)
    )
    click = np.array([3 * MASK_STRIDE, 3 * MASK_STRIDE], np.float32)
    whole = _whole_at(example, click)
    assert whole is not None
    assert (whole == masks[1]).all()
    assert _whole_at(example, np.zeros(2, np.float32)) is None


def test_central_clicks_are_far_from_the_border() -> None:
    inside = np.zeros((32, 32), bool)
    inside[4:25, 4:25] = True
    rng = np.random.default_rng(0)

    def spread(central: float) -> float:
        points = np.stack([pick_click(rng, inside, central) for _ in range(300)]) / MASK_STRIDE
        return float(np.abs(points - 14.5).max(1).mean())

    assert spread(1.0) < 0.5 * spread(0.0)


def test_corrections_are_where_the_mask_is_wrong(batches: list[PromptedBatch]) -> None:
    batch = next(batch for batch in batches if batch.points is not None and batch.points.shape[1] == 1)
    assert batch.points is not None
    assert batch.labels is not None
    logits = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(0))
    points, labels = correct(np.random.default_rng(0), batch, logits)
    assert (points[:, :1] == batch.points).all()
    assert (labels[:, :1] == batch.labels).all()
    truth, found = at_points(batch.targets, points) > 0.5, at_points(logits, points) > 0
    assert (truth[:, 1] != found[:, 1]).all()
    assert (truth[:, 1] == (labels[:, 1] == 1)).all()


def test_a_perfect_mask_gets_another_click_in_the_object(batches: list[PromptedBatch]) -> None:
    batch = next(batch for batch in batches if batch.points is not None)
    points, labels = correct(np.random.default_rng(0), batch, batch.targets - 0.5)
    assert (labels[:, -1] == 1).all()
    assert (at_points(batch.targets, points)[:, -1] > 0.5).all()
