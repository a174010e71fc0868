"""Segmentation metrics: pixel counts that add up over shards and workers, and ratios of the summed counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Integer
from torch import Tensor

from ray_wsss.ops.device import upload


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Pixel counts of K classes, background included.

    `sum(parts, ConfusionMatrix.zeros(21)).miou()` is the mIoU of all pixels, not the mean of the parts' mIoU.
    """

    counts: Int[Tensor, "K K"]
    """Pixels, int64: row = true class, column = predicted class."""

    @classmethod
    def zeros(cls, num_classes: int) -> "ConfusionMatrix":
        """Counts of 0 for `num_classes` classes, background included; on the CPU."""
        return cls(torch.zeros(num_classes, num_classes, dtype=torch.int64))

    @classmethod
    def from_labels(
        cls,
        prediction: Integer[Tensor, "*shape"],
        truth: Integer[Tensor, "*shape"],
        num_classes: int,
        ignore: int = 255,
    ) -> "ConfusionMatrix":
        """Count the pixels of two label maps of equal shape.

        Args:
            prediction: labels in 0 .. num_classes - 1. The label `ignore` counts as background (0), so that a
                method can't improve its score by not answering.
            truth: labels in 0 .. num_classes - 1; pixels with the label `ignore` are not counted.
            num_classes: K, background included (VOC: 21).
            ignore: label of pixels without ground truth.

        Raises:
            ValueError: a counted pixel has a label out of range.
        """
        counted = truth != ignore
        rows = truth[counted].long()
        columns = prediction[counted].long()
        columns = columns.masked_fill(columns == ignore, 0)
        for name, labels in (("truth", rows), ("prediction", columns)):
            _check_labels(name, labels, num_classes, ignore)
        cells = torch.bincount(rows * num_classes + columns, minlength=num_classes**2)
        return cls(cells.view(num_classes, num_classes))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Sum of the counts of both matrices.

        Raises:
            ValueError: the matrices have different numbers of classes.
        """
        if self.counts.shape != other.counts.shape:
            ours, theirs = len(self.counts), len(other.counts)
            raise ValueError(f"confusion matrices have {ours} and {theirs} classes; expected equal numbers")
        return ConfusionMatrix(self.counts + other.counts)

    def iou(self) -> Float[Tensor, " K"]:
        """Intersection over union (IoU) per class, float64 in [0, 1]; NaN for a class in neither map."""
        counts = self.counts.double()
        intersection = counts.diagonal()
        union = counts.sum(dim=0) + counts.sum(dim=1) - intersection
        return intersection / union

    def miou(self) -> float:
        """Mean IoU over the classes in either map, background included; NaN if no pixel was counted."""
        return self.iou().nanmean().item()

    def to_list(self) -> list[list[int]]:
        """Counts as nested lists, row by row, for JSON."""
        return self.counts.tolist()

    @classmethod
    def from_list(cls, rows: list[list[int]]) -> "ConfusionMatrix":
        """Matrix from the nested lists of `to_list`.

        Raises:
            ValueError: the rows do not form a square.
        """
        if any(len(row) != len(rows) for row in rows):
            raise ValueError(f"rows have lengths {[len(row) for row in rows]}; expected {len(rows)} each")
        return cls(torch.tensor(rows, dtype=torch.int64).view(len(rows), len(rows)))


@dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """Pixel counts of label maps with a score per pixel: the confusion matrices at T thresholds.

    At threshold t, a pixel with a score above t has its label, and every other pixel is background (0). All
    pixels are counted once, by the number of thresholds that their score exceeds. `matrices` adds these
    counts up. Counts of several images, with the same thresholds, are added like confusion matrices.
    """

    counts: Int[Tensor, "K K bins"]
    """Pixels, int64, by true class, label, and number of thresholds below the score: T + 1 bins."""
    thresholds: tuple[float, ...]
    """Thresholds, ascending."""

    @classmethod
    def zeros(
        cls, num_classes: int, thresholds: Sequence[float], device: torch.device | None = None
    ) -> "ThresholdCounts":
        """Counts of 0 for `num_classes` classes, background included; on the CPU without a `device`."""
        shape = (num_classes, num_classes, len(thresholds) + 1)
        return cls(torch.zeros(shape, dtype=torch.int64, device=device), tuple(thresholds))

    @classmethod
    def from_scores(
        cls,
        score: Float32[Tensor, "*shape"],
        label: Integer[Tensor, "*shape"],
        truth: Integer[Tensor, "*shape"],
        num_classes: int,
        thresholds: Sequence[float],
        ignore: int = 255,
    ) -> "ThresholdCounts":
        """Count the pixels of a label map with scores. The host doesn't wait for a GPU that holds them.

        Args:
            score: any values; NaN is above no threshold, as in ``score > t``.
            label: labels in 0 .. num_classes - 1, on the device of `score`. On a GPU their range is not
                checked, since the host would have to wait.
            truth: labels in 0 .. num_classes - 1, on the CPU; pixels with the label `ignore` are not counted.
            num_classes: K, background included (VOC: 21).
            thresholds: thresholds, ascending. They are rounded to float32, as ``score > t`` rounds t.
            ignore: label of pixels without ground truth.

        Raises:
            ValueError: a counted pixel has a label out of range.
        """
        _check_labels("truth", truth.masked_fill(truth == ignore, 0), num_classes, ignore)
        if label.device.type == "cpu":
            _check_labels("prediction", label, num_classes, ignore)
        edges = upload(torch.tensor(thresholds, dtype=torch.float32), score.device)
        # The number of thresholds below a score: with right=False, a score on an edge isn't above it.
        bins = torch.bucketize(score.nan_to_num(nan=-torch.inf), edges, right=False)
        truth = upload(truth, score.device).long()
        rows = torch.where(truth == ignore, num_classes, truth)  # the last row is dropped
        cells = ((rows * num_classes + label) * (len(edges) + 1) + bins).flatten()
        # Not torch.bincount: the length of its result depends on values, for which the host would wait.
        counts = cells.new_zeros((num_classes + 1) * num_classes * (len(edges) + 1))
        counts.scatter_add_(0, cells, torch.ones_like(cells))
        counts = counts.view(num_classes + 1, num_classes, len(edges) + 1)[:num_classes]
        return cls(counts, tuple(thresholds))

    def __add__(self, other: "ThresholdCounts") -> "ThresholdCounts":
        """Sum of the counts of both.

        Raises:
            ValueError: they have different numbers of classes, or different thresholds.
        """
        if self.counts.shape != other.counts.shape or self.thresholds != other.thresholds:
            raise ValueError(
                f"counts have {len(self.counts)} and {len(other.counts)} classes, {len(self.thresholds)} and "
                f"{len(other.thresholds)} thresholds; expected equal numbers of classes and equal thresholds"
            )
        return ThresholdCounts(self.counts + other.counts, self.thresholds)

    def matrices(self) -> dict[float, ConfusionMatrix]:
        """Confusion matrix at each threshold."""
        from_bin = self.counts.flip(-1).cumsum(-1).flip(-1)  # pixels in this bin or a higher one
        above = from_bin[..., 1:]
        matrices = above.clone()
        matrices[:, 0] += (from_bin[..., :1] - above).sum(1)
        return {t: ConfusionMatrix(matrices[..., k]) for k, t in enumerate(self.thresholds)}


def _check_labels(name: str, labels: Integer[Tensor, "..."], num_classes: int, ignore: int) -> None:
    """Raise ValueError for the first label that is not in 0 .. num_classes - 1."""
    if not labels.numel() or (labels.min() >= 0 and labels.max() < num_classes):
        return
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    expected = f"0..{num_classes - 1} or {ignore} (ignore)"
    raise ValueError(f"{name} has label {wrong[0].item()}; expected {expected}")
