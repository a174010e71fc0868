"""Confusion counts against torchmetrics."""

import json
import math

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from ray_wsss.ops.metrics import ConfusionMatrix, ThresholdCounts, threshold_ious

NUM_CLASSES = 5


@pytest.fixture
def truth() -> torch.Tensor:
    labels = torch.randint(0, NUM_CLASSES + 1, (6, 10, 12), generator=torch.Generator().manual_seed(0))
    return labels.masked_fill(labels == NUM_CLASSES, 255).to(torch.uint8)


@pytest.fixture
def prediction(truth: torch.Tensor) -> torch.Tensor:
    """Right at about two pixels of three, so that the IoUs differ from chance and from 1."""
    generator = torch.Generator().manual_seed(1)
    guess = torch.randint(0, NUM_CLASSES, truth.shape, generator=generator).to(torch.uint8)
    right = torch.rand(truth.shape, generator=generator) < 0.6
    return torch.where(right & (truth != 255), truth, guess)


def test_counts_and_iou_equal_torchmetrics(prediction: torch.Tensor, truth: torch.Tensor):
    matrix = ConfusionMatrix.from_labels(prediction, truth, NUM_CLASSES)
    counts = MulticlassConfusionMatrix(NUM_CLASSES, ignore_index=255)(prediction.long(), truth.long())
    iou = MulticlassJaccardIndex(NUM_CLASSES, average=None, ignore_index=255)(prediction.long(), truth.long())
    assert torch.equal(matrix.counts, counts)
    assert_close(matrix.iou().float(), iou)
    assert matrix.miou() == pytest.approx(iou.mean().item(), rel=1e-6)


def test_sum_of_parts_equals_the_whole(prediction: torch.Tensor, truth: torch.Tensor):
    parts = [ConfusionMatrix.from_labels(p, t, NUM_CLASSES) for p, t in zip(prediction, truth)]
    whole = ConfusionMatrix.from_labels(prediction, truth, NUM_CLASSES)
    assert torch.equal(sum(parts, ConfusionMatrix.zeros(NUM_CLASSES)).counts, whole.counts)
    # The mean of the parts' mIoU is another number: this is why counts are added.
    assert sum(part.miou() for part in parts) / len(parts) != pytest.approx(whole.miou(), abs=1e-4)


@pytest.mark.parametrize("axis", [-1, -2])
def test_flipping_both_changes_nothing(prediction: torch.Tensor, truth: torch.Tensor, axis: int):
    flipped = ConfusionMatrix.from_labels(prediction.flip(axis), truth.flip(axis), NUM_CLASSES)
    assert torch.equal(flipped.counts, ConfusionMatrix.from_labels(prediction, truth, NUM_CLASSES).counts)


def test_rows_are_truth():
    matrix = ConfusionMatrix.from_labels(torch.tensor([2]), torch.tensor([1]), 3)
    assert matrix.counts.nonzero().tolist() == [[1, 2]]


def test_a_prediction_of_ignore_counts_as_background():
    truth, prediction = torch.tensor([0, 1, 255]), torch.tensor([255, 255, 255])
    matrix = ConfusionMatrix.from_labels(prediction, truth, 2)
    assert matrix.to_list() == [[1, 0], [1, 0]]


def test_another_ignore_label():
    matrix = ConfusionMatrix.from_labels(torch.tensor([1, 1]), torch.tensor([-1, 1]), 2, ignore=-1)
    assert matrix.to_list() == [[0, 0], [0, 1]]


def test_a_class_that_occurs_nowhere_is_nan_and_not_averaged():
    matrix = ConfusionMatrix.from_labels(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3)
    assert_close(matrix.iou(), torch.tensor([0.5, 0.5, math.nan], dtype=torch.float64), equal_nan=True)
    assert matrix.miou() == 0.5
    assert math.isnan(ConfusionMatrix.zeros(3).miou())


def test_labels_out_of_range_are_refused():
    good, bad = torch.tensor([0, 1]), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="truth has label 3"):
        ConfusionMatrix.from_labels(good, bad, 3)
    with pytest.raises(ValueError, match="prediction has label 3"):
        ConfusionMatrix.from_labels(bad, good, 3)


def test_adding_different_class_counts_is_refused():
    with pytest.raises(ValueError, match="have 2 and 3 classes"):
        _ = ConfusionMatrix.zeros(2) + ConfusionMatrix.zeros(3)


def test_json_round_trip(prediction: torch.Tensor, truth: torch.Tensor):
    matrix = ConfusionMatrix.from_labels(prediction, truth, NUM_CLASSES)
    again = ConfusionMatrix.from_list(json.loads(json.dumps(matrix.to_list())))
    assert again.counts.dtype == torch.int64
    assert torch.equal(again.counts, matrix.counts)


def test_rows_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="expected 2 each"):
        ConfusionMatrix.from_list([[1, 2], [3]])


THRESHOLDS = sorted({k / 100 for k in range(1, 100)} | {0.0, 0.421, 0.3 + 1e-9, 1 / 3, 1.0})
"""Hundredths, and others: two that float32 can't tell apart, and both ends."""


def recount(score: torch.Tensor, label: torch.Tensor, truth: torch.Tensor, t: float) -> torch.Tensor:
    """The counts at one threshold as its definition says."""
    return ConfusionMatrix.from_labels(torch.where(score > t, label, 0), truth, NUM_CLASSES).counts


@pytest.fixture
def score(truth: torch.Tensor) -> torch.Tensor:
    """Scores of which every third is a threshold in float32, or one of the floats beside it."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.rand(truth.shape, generator=generator).flatten()
    edges = torch.tensor(THRESHOLDS)
    beside = [edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1)]
    special = torch.cat([*beside, torch.tensor([-0.0, -1.0, 2.0, torch.inf, -torch.inf, torch.nan])])
    drawn[: 2 * len(special) : 2] = special[: drawn[: 2 * len(special) : 2].numel()]
    assert 2 * len(special) < drawn.numel()
    return drawn.view(truth.shape)


def test_one_count_serves_every_threshold(
    score: torch.Tensor, prediction: torch.Tensor, truth: torch.Tensor
) -> None:
    counted = ThresholdCounts.from_scores(score, prediction, truth, NUM_CLASSES, THRESHOLDS)
    ious = threshold_ious(counted.by_class())
    assert ious.shape == (len(THRESHOLDS), NUM_CLASSES)
    for t, iou in zip(THRESHOLDS, ious):
        matrix = counted.matrix(t)
        assert torch.equal(matrix.counts, recount(score, prediction, truth, t)), t
        assert torch.equal(iou.nan_to_num(-1), matrix.iou().nan_to_num(-1)), t
    assert not torch.equal(counted.matrix(0.3).counts, counted.matrix(0.31).counts)
    assert torch.equal(counted.matrix(0.3).counts, counted.matrix(0.3 + 1e-9).counts)


@pytest.mark.parametrize("k", range(1, 100))
def test_a_score_on_a_threshold_is_not_above_it(k: int) -> None:
    edge = torch.tensor([k / 100])
    scores = torch.cat([edge.nextafter(edge - 1), edge, edge.nextafter(edge + 1)])
    ones = torch.ones(3, dtype=torch.uint8)
    thresholds = [n / 100 for n in range(1, 100)]
    counted = ThresholdCounts.from_scores(scores, ones, ones, 2, thresholds)
    assert counted.matrix(k / 100).to_list() == [[0, 0], [2, 1]]


def test_threshold_counts_of_parts_add_up(
    score: torch.Tensor, prediction: torch.Tensor, truth: torch.Tensor
) -> None:
    parts = [
        ThresholdCounts.from_scores(*part, NUM_CLASSES, THRESHOLDS) for part in zip(score, prediction, truth)
    ]
    total = ThresholdCounts.total(parts, NUM_CLASSES, THRESHOLDS)
    whole = ThresholdCounts.from_scores(score, prediction, truth, NUM_CLASSES, THRESHOLDS)
    assert torch.equal(total.by_class(), torch.stack([part.by_class() for part in parts]).sum(0))
    assert len(total.merged().cells) < len(total.cells)
    for counted in (total, total.merged(), whole.merged()):
        assert torch.equal(counted.by_class(), whole.by_class())
        assert torch.equal(counted.matrix(0.3).counts, whole.matrix(0.3).counts)
    assert total.pixels.sum() == (truth != 255).sum()
    assert not ThresholdCounts.total([], NUM_CLASSES, THRESHOLDS).by_class().any()
    with pytest.raises(ValueError, match="5 and 5 classes, 2 and 104 thresholds"):
        ThresholdCounts.total([whole], NUM_CLASSES, [0.1, 0.2])
    with pytest.raises(ValueError, match="expected equal numbers of classes and equal thresholds"):
        ThresholdCounts.total([whole], 2, THRESHOLDS)


def test_without_thresholds_a_label_map_is_counted_as_it_is(
    score: torch.Tensor, prediction: torch.Tensor, truth: torch.Tensor
) -> None:
    counted = ThresholdCounts.from_scores(score, prediction, truth, NUM_CLASSES, [])
    expected = ConfusionMatrix.from_labels(prediction, truth, NUM_CLASSES).counts
    assert torch.equal(counted.matrix().counts, expected)
    assert threshold_ious(counted.by_class()).shape == (0, NUM_CLASSES)


def test_labels_with_scores_out_of_range_are_refused() -> None:
    score, good, bad = torch.ones(2), torch.tensor([0, 1]), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="truth has label 3"):
        ThresholdCounts.from_scores(score, good, bad, 3, [0.5])
    with pytest.raises(ValueError, match="prediction has label 3"):
        ThresholdCounts.from_scores(score, bad, good, 3, [0.5])
    ignored = ThresholdCounts.from_scores(score, good, torch.tensor([255, 255]), 3, [0.5])
    assert not ignored.pixels.any()
