"""Segmentation metrics: pixel counts that add up over shards and workers, and ratios of the summed counts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor


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
            wrong = labels[(labels < 0) | (labels >= num_classes)]
            if len(wrong):
                raise ValueError(
                    f"{name} has label {wrong[0].item()}; expected 0..{num_classes - 1} or {ignore} (ignore)"
                )
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
