"""Survey of all labels of a data set: their scores, their IoU if there is ground truth, and failures."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.ops.metrics import ConfusionMatrix
from ray_wsss.runs.curation.agreement import confusion_of, iou_of_classes
from ray_wsss.runs.curation.doubt import image_doubt
from ray_wsss.stages.label import score_of

BINS = 25
"""Number of equal bins of the histograms over [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SurveyedImage:
    """One image of the data set."""

    row: int
    """Row number in the data set."""
    image_id: str
    score: float | None = None
    """Mean score of the image's masks, in [0, 1]."""
    doubt: float | None = None
    """Doubt about the pseudo label, in [0, 1], see `runs.curation.doubt`; None if it has no mask of SAM."""
    iou: float | None = None
    """Mean IoU of the pseudo label over classes, background left out, in [0, 1]."""


@dataclass(kw_only=True)
class Survey:
    """Counts and scores of all images; takes some hundred bytes of memory per image."""

    class_names: tuple[str, ...]
    unlabelled: int = 0
    """Images of the data set whose labels are unknown."""
    empty: int = 0
    """Images of the data set that have none of the classes."""
    images: list[SurveyedImage] = field(default_factory=list)
    """Images that did not fail."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(image id, reason)."""
    prompts: int = 0
    """Points and boxes that prompted SAM."""
    masks: Counter[int] = field(default_factory=Counter)
    """Number of masks by class index."""
    score_sums: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Sum of the masks' scores by class index."""
    histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Counts (BINS,) over [0, 1] by name."""
    confusion: ConfusionMatrix | None = None
    """Confusion counts of the pseudo labels; None without ground truth or labels."""
    compared: int = 0
    """Images counted in ``confusion``."""

    def count(self, name: str, value: float | None) -> None:
        """Add a value to a histogram, outside [0, 1] to the nearest bin. None is ignored."""
        if value is not None:
            counts = self.histograms.setdefault(name, np.zeros(BINS, np.int64))
            counts[min(BINS - 1, max(0, int(value * BINS)))] += 1


def survey(dataset: Path, labels: Path | None) -> Survey:
    """Read all labels and their ground truth, one image at a time.

    Raises:
        UserError: ``dataset`` is not a data set, or shards are damaged.
    """
    metadata = DatasetMetadata.load(dataset)
    rows, label_rows = ShardReader(dataset), ShardReader(labels) if labels is not None else None
    result = Survey(class_names=metadata.class_names, unlabelled=metadata.unlabelled, empty=metadata.empty)
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
        doubt = image_doubt(label["segments"] or [])
        result.images.append(SurveyedImage(row=row, image_id=image_id, score=score, doubt=doubt, iou=iou))
    return result


def _label_of(labels: ShardReader, image_id: str) -> dict[str, Any]:
    nothing = {"pseudo_label": None, "segments": None, "error": "it has no label"}
    return labels.find(image_id) or nothing


def _count_segment(result: Survey, segment: dict[str, Any]) -> float:
    score = score_of(segment)
    for name in ("sam_score", "stability_score", "cam_mean"):
        result.count(name, segment.get(name))  # labels of earlier versions have no stability score
    result.count("score", score)
    result.prompts += len(segment["points_xy"]) + (segment.get("box_xyxy") is not None)
    result.masks[segment["class_index"]] += 1
    result.score_sums[segment["class_index"]] += score
    return score


def _compare(result: Survey, pseudo_label: bytes | None, truth: bytes) -> float | None:
    """Add the pixels of one image to the confusion counts; returns its mean IoU.

    An image without a label counts as background everywhere, as in evaluate; so do ignored pixels.

    Raises:
        ValueError: label and ground truth don't fit together.
    """
    num_classes = len(result.class_names)
    expected = decode_mask(truth, num_classes)
    found = decode_mask(pseudo_label, num_classes) if pseudo_label is not None else np.zeros_like(expected)
    labels, matrix = confusion_of(found, expected)
    if labels[-1] > num_classes:
        raise ValueError(f"it has label {labels[-1]}; expected 0 to {num_classes}")
    if result.confusion is None:
        result.confusion = ConfusionMatrix.zeros(1 + num_classes)
    result.confusion.counts[labels[:, None], labels] += matrix.counts
    result.compared += 1
    return iou_of_classes(matrix)
