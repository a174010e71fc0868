"""One look at all labels of a data set: how sure they are, how right where there is truth, what failed."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.ops.metrics import ConfusionMatrix
from ray_wsss.stages.label import score_of

BINS = 25
"""Of the histograms over [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SurveyedImage:
    """One image of the data set."""

    row: int
    """In the data set."""
    image_id: str
    score: float | None = None
    """Mean score of its masks, in [0, 1]."""
    iou: float | None = None
    """Mean IoU of its pseudo label over the classes, background left out, in [0, 1]."""


@dataclass(kw_only=True)
class Survey:
    """What is known of all images; memory grows with their number by some hundred bytes each."""

    class_names: tuple[str, ...]
    images: list[SurveyedImage] = field(default_factory=list)
    """Those that didn't fail."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(image id, reason)."""
    prompts: int = 0
    masks: Counter[int] = field(default_factory=Counter)
    """By class index."""
    score_sums: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Of the masks' scores, by class index."""
    histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Counts over [0, 1] by name."""
    confusion: ConfusionMatrix | None = None
    """Of the pseudo labels; None where there is no truth, or no label."""
    compared: int = 0
    """Images in ``confusion``."""

    def count(self, name: str, value: float | None) -> None:
        """Add a value to a histogram; what lies outside of [0, 1] counts at its end."""
        if value is not None:
            counts = self.histograms.setdefault(name, np.zeros(BINS, np.int64))
            counts[min(BINS - 1, max(0, int(value * BINS)))] += 1


def survey(dataset: Path, labels: Path | None) -> Survey:
    """Read all labels, and the truth beside them, one image at a time.

    Raises:
        UserError: no data set, or damaged shards.
    """
    metadata = DatasetMetadata.load(dataset)
    rows, label_rows = ShardReader(dataset), ShardReader(labels) if labels is not None else None
    result = Survey(class_names=metadata.class_names)
    for row, image_id in enumerate(rows.image_ids):
        if label_rows is None:
            result.images.append(SurveyedImage(row=row, image_id=image_id))
            continue
        label = _label_of(label_rows, image_id)
        scores = [_count_segment(result, segment) for segment in label["segments"] or []]
        score = sum(scores) / len(scores) if scores else None
        truth = rows.read(row, ["mask"])["mask"] if metadata.has_masks else None
        try:
            iou = _compare(result, label["pseudo_label"], truth) if truth is not None else None
            if label["error"] is not None:
                raise ValueError(label["error"])
        except ValueError as error:
            result.failed.append((image_id, str(error)))
            continue
        result.count("iou", iou)
        result.images.append(SurveyedImage(row=row, image_id=image_id, score=score, iou=iou))
    return result


def _label_of(labels: ShardReader, image_id: str) -> dict[str, Any]:
    try:
        return labels.read(labels.index_of(image_id))
    except KeyError:
        return {"pseudo_label": None, "segments": None, "error": "it has no label"}


def _count_segment(result: Survey, segment: dict[str, Any]) -> float:
    score = score_of(segment)
    for name in ("sam_score", "stability_score", "cam_mean"):
        result.count(name, segment.get(name))  # labels of earlier versions have no stability score
    result.count("score", score)
    result.prompts += len(segment["points_xy"])
    result.masks[segment["class_index"]] += 1
    result.score_sums[segment["class_index"]] += score
    return score


def _compare(result: Survey, pseudo_label: bytes | None, truth: bytes) -> float | None:
    """Count the pixels of one image; one without a label is all background, as for evaluate.

    Raises:
        ValueError: label and truth don't fit.
    """
    expected = decode_mask(truth)
    found = decode_mask(pseudo_label) if pseudo_label is not None else np.zeros_like(expected)
    matrix = confusion_of(found, expected, 1 + len(result.class_names))
    result.confusion = matrix if result.confusion is None else result.confusion + matrix
    result.compared += 1
    return mean_iou(matrix)


def confusion_of(label_map: NDArray[np.uint8], truth: NDArray[np.uint8], num_classes: int) -> ConfusionMatrix:
    """Counts of one image. Raises ValueError where the maps' sizes differ, or a label is too large."""
    if label_map.shape != truth.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (label_map.shape, truth.shape)]
        raise ValueError(f"its label map is {sizes[0]} pixels, its ground truth {sizes[1]}")
    return ConfusionMatrix.from_labels(torch.from_numpy(label_map), torch.from_numpy(truth), num_classes)


def mean_iou(matrix: ConfusionMatrix) -> float | None:
    """Mean IoU over the classes of an image, background left out: it is nearly always right.

    None where neither map has a class.
    """
    iou = matrix.iou()[1:]
    return None if iou.isnan().all() else float(iou.nanmean())
