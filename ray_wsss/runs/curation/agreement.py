"""Agreement of two label maps of an image."""

import numpy as np
import torch
from torch import Tensor

from ray_wsss.label_format import LabelMap, ignore_label
from ray_wsss.ops.metrics import ConfusionMatrix


def confusion_of(label_map: LabelMap, truth: LabelMap) -> tuple[Tensor, ConfusionMatrix]:
    """The labels in either map of an image, ascending, background first, and the counts of these labels.

    With 1,000 classes, a matrix of all would have a million cells for every image.

    Raises:
        ValueError: the maps' sizes differ.
    """
    if label_map.shape != truth.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (label_map.shape, truth.shape)]
        raise ValueError(f"its label map is {sizes[0]} pixels, its ground truth {sizes[1]}")
    labels = np.union1d([0], np.union1d(label_map, truth))
    labels = labels[labels != ignore_label(truth)]
    # Ignored pixels have the highest label, so that they are placed behind all others.
    predicted, true = (torch.from_numpy(np.searchsorted(labels, m)) for m in (label_map, truth))
    matrix = ConfusionMatrix.from_labels(predicted, true, len(labels), ignore=len(labels))
    return torch.from_numpy(labels.astype(np.int64)), matrix


def mean_iou(label_map: LabelMap, truth: LabelMap) -> float | None:
    """Mean IoU over the classes of an image, in [0, 1]; None if neither label map has a class.

    Background is left out, since it is nearly always right. Raises ValueError if the maps' sizes differ.
    """
    return iou_of_classes(confusion_of(label_map, truth)[1])


def iou_of_classes(matrix: ConfusionMatrix) -> float | None:
    """Mean IoU over the classes that occur, background left out, in [0, 1]; None if none occurs."""
    iou = matrix.iou()[1:]
    return None if iou.isnan().all() else float(iou.nanmean())
