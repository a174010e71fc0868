"""Segmentation metrics: pixel counts that add up over shards and workers, and ratios of the summed counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
    pixels are counted once, by true class, label, and number of thresholds below the score (a bin, of T + 1).
    Only cells that may have pixels are kept: with 1,000 classes and 99 thresholds there are 10**8 cells, and
    an image fills some hundred.
    """

    cells: Int[Tensor, " n"]
    """Flat indices into (K, K, T + 1), on the CPU; one may occur several times."""
    pixels: Int[Tensor, " n"]
    """Pixels of each cell, int64, on any device."""
    num_classes: int
    """K, background included."""
    thresholds: tuple[float, ...]
    """Thresholds, ascending."""

    @classmethod
    def total(
        cls, parts: Iterable["ThresholdCounts"], num_classes: int, thresholds: Sequence[float]
    ) -> "ThresholdCounts":
        """Counts of all parts together; without parts, none.

        Raises:
            ValueError: a part has another number of classes, or other thresholds.
        """
        # Counts of no image are on the CPU, wherever the others are.
        parts, thresholds = [part for part in parts if len(part.cells)], tuple(thresholds)
        for part in parts:
            if part.num_classes != num_classes or part.thresholds != thresholds:
                raise ValueError(
                    f"counts have {num_classes} and {part.num_classes} classes, {len(thresholds)} and "
                    f"{len(part.thresholds)} thresholds; expected equal numbers of classes and equal "
                    "thresholds"
                )
        if not parts:
            none = torch.zeros(0, dtype=torch.int64)
            return cls(none, none, num_classes, thresholds)
        cells, pixels = torch.cat([part.cells for part in parts]), torch.cat([part.pixels for part in parts])
        return cls(cells, pixels, num_classes, thresholds)

    @classmethod
    def from_scores(
        cls,
        score: Float32[Tensor, "*shape"],
        label: Integer[Tensor, "*shape"],
        truth: Integer[Tensor, "*shape"],
        num_classes: int,
        thresholds: Sequence[float],
        ignore: int = 255,
        labels: Sequence[int] | None = None,
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
            labels: all labels that `label` may hold, ascending; None: 0 .. num_classes - 1.

        Raises:
            ValueError: a counted pixel has a label out of range.
        """
        _check_labels("truth", truth.masked_fill(truth == ignore, 0), num_classes, ignore)
        if label.device.type == "cpu":
            _check_labels("prediction", label, num_classes, ignore)
        rows = torch.bincount(
            truth.masked_fill(truth == ignore, num_classes).flatten(), minlength=num_classes
        )
        rows = rows[:num_classes].nonzero()[:, 0]
        columns = torch.arange(num_classes) if labels is None else torch.tensor(labels, dtype=torch.int64)
        edges = upload(torch.tensor(thresholds, dtype=torch.float32), score.device)
        bins = len(edges) + 1
        # Ignored pixels get a row behind all others, which is dropped.
        row = torch.where(truth == ignore, len(rows), torch.searchsorted(rows, truth.long()))
        row = upload(row, score.device)
        column = torch.searchsorted(upload(columns, label.device), label.long())
        # The number of thresholds below a score: with right=False, a score on an edge isn't above it.
        bin_ = torch.bucketize(score.nan_to_num(nan=-torch.inf), edges, right=False)
        at = ((row * len(columns) + column) * bins + bin_).flatten()
        # Not torch.bincount: the length of its result depends on values, for which the host would wait.
        counts = at.new_zeros((len(rows) + 1) * len(columns) * bins)
        counts.scatter_add_(0, at, torch.ones_like(at))
        cells = (rows[:, None] * num_classes + columns)[..., None] * bins + torch.arange(bins)
        return cls(cells.flatten(), counts[: cells.numel()], num_classes, tuple(thresholds))

    def merged(self) -> "ThresholdCounts":
        """The same counts on the CPU, each cell once, in ascending order and without zeros."""
        cells, place = self.cells.unique(return_inverse=True)
        pixels = torch.zeros_like(cells).index_add_(0, place, self.pixels.cpu())
        kept = pixels > 0
        return replace(self, cells=cells[kept], pixels=pixels[kept])

    def matrix(self, threshold: float | None = None) -> ConfusionMatrix:
        """Confusion matrix at one of the thresholds; None: of all labels, whatever their scores."""
        row, column, bin_ = self._places()
        if threshold is not None:
            column = column.masked_fill(bin_ <= self.thresholds.index(threshold), 0)
        counts = torch.zeros(self.num_classes**2, dtype=torch.int64)
        counts.index_add_(0, row * self.num_classes + column, self.pixels.cpu())
        return ConfusionMatrix(counts.view(self.num_classes, self.num_classes))

    def by_class(self) -> Int[Tensor, "4 K bins"]:
        """Pixels by class and bin, on the CPU: all that the IoU at every threshold takes (`threshold_ious`).

        In turn pixels that are truly of the class, pixels with its label, both, and pixels of the background
        with its label. Like counts, they are added.
        """
        row, column, bin_ = self._places()
        pixels, bins = self.pixels.cpu(), len(self.thresholds) + 1
        found = torch.zeros(4, self.num_classes * bins, dtype=torch.int64)
        found[0].index_add_(0, row * bins + bin_, pixels)
        at = column * bins + bin_
        found[1].index_add_(0, at, pixels)
        found[2].index_add_(0, at, pixels * (row == column))
        found[3].index_add_(0, at, pixels * (row == 0))
        return found.view(4, self.num_classes, bins)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """True class, label and bin of each cell."""
        bins = len(self.thresholds) + 1
        pair = self.cells // bins
        return pair // self.num_classes, pair % self.num_classes, self.cells % bins


def threshold_ious(by_class: Int[Tensor, "4 K bins"]) -> Float[Tensor, "T K"]:
    """IoU per class at each threshold, from `ThresholdCounts.by_class`; equals that of `ConfusionMatrix`."""
    truth, labelled, hit, mistaken = by_class
    above = labelled.flip(-1).cumsum(-1).flip(-1)[:, 1:].clone()
    hits = hit.flip(-1).cumsum(-1).flip(-1)[:, 1:].clone()
    found = mistaken.flip(-1).cumsum(-1).flip(-1)[:, 1:]
    # Whatever isn't above the threshold is background.
    above[0] = labelled.sum() - above[1:].sum(0)
    hits[0] = mistaken.sum() - found[1:].sum(0)
    return (hits.double() / (above + truth.sum(-1, keepdim=True) - hits).double()).T


def _check_labels(name: str, labels: Integer[Tensor, "..."], num_classes: int, ignore: int) -> None:
    """Raise ValueError for the first label that is not in 0 .. num_classes - 1."""
    if not labels.numel() or (labels.min() >= 0 and labels.max() < num_classes):
        return
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    expected = f"0..{num_classes - 1} or {ignore} (ignore)"
    raise ValueError(f"{name} has label {wrong[0].item()}; expected {expected}")
