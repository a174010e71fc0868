"""Confusion counts of CAMs, pseudo labels and segmenter against ground truth, one table at a time."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import LabelConfig, PredictConfig
from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.device import upload
from ray_wsss.ops.metrics import ConfusionMatrix, ThresholdCounts
from ray_wsss.ops.resize import resize_maps, shrink
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.read_chunks import plan_chunks, read_chunk
from ray_wsss.stages.cams import PairCams, cams_of
from ray_wsss.stages.predict import Predictor

THRESHOLDS = tuple(k / 100 for k in range(1, 100))
"""Background thresholds, 0.01 to 0.99, that the best CAM mIoU is chosen from."""

COUNTS_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),  # "cam", "segmenter" or "pseudo_label"
        pa.field("labels", pa.int32()),  # number of labels, background included
        pa.field("thresholds", pa.list_(pa.float64())),  # of CAMs, else none
        # Pixels of `ops.metrics.ThresholdCounts`, without zeros: flat index, and number. Of a million cells
        # that COCO's 80 classes have, an image fills a few hundred.
        pa.field("cells", pa.list_(pa.int64())),
        pa.field("counts", pa.list_(pa.int64())),
        pa.field("images", pa.int64()),
    ]
)


class Measure(TypedDict):
    """Results of one measure, as in ``metrics.json``."""

    threshold: NotRequired[float]
    """Background threshold of CAMs, in [0, 1]."""
    miou: float
    """Mean IoU over the classes that occur, background included, in [0, 1]."""
    images: int
    """Number of images with ground truth."""
    iou: dict[str, float | None]
    """IoU in [0, 1] by class name; None for a class that never occurs."""
    confusion: dict[str, dict[str, int]]
    """Pixels by true class name, then by predicted class name, without zeros."""


class CamEvaluator:
    """Measures CAMs of the image labels, at a fixed background threshold and at all of `THRESHOLDS`."""

    def __init__(
        self, model: Classifier, num_classes: int, config: LabelConfig, threshold: float, device: torch.device
    ) -> None:
        self.model, self.num_classes, self.config, self.device = model, num_classes, config, device
        self.thresholds = sorted({*THRESHOLDS, float(threshold)})

    @classmethod
    def load(
        cls, classifier: Path, config: LabelConfig, threshold: float, device: str = "cpu"
    ) -> "CamEvaluator":
        """Evaluator of the network in the folder ``classifier``."""
        model, spec = load_classifier(classifier)
        on = torch.device(device)
        config = with_classifier_side(config, classifier)
        return cls(model.to(on), len(spec.class_names), config, threshold, on)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Count the rows of a data set that have ground truth: one row of `COUNTS_SCHEMA`."""
        return _counts_table("cam", *self.count(table))

    def count(self, table: pa.Table) -> tuple[ThresholdCounts, int]:
        """Counts of the rows with ground truth, on the evaluator's device, and the number of these rows."""
        total = ThresholdCounts.zeros(1 + self.num_classes, self.thresholds, self.device)
        images = 0
        for row, pixels, truth in _with_truth(table):
            cams = cams_of(
                self.model,
                [shrink(pixels, self.config.max_side_px)],
                [row["image_labels"]],
                self.config,
            )
            total = total + count_cams(cams, truth, 1 + self.num_classes, self.thresholds)
            images += 1
        return total, images


def count_cams(
    cams: PairCams, truth: NDArray[np.uint8], num_labels: int, thresholds: Sequence[float]
) -> ThresholdCounts:
    """Counts of the CAMs of one image, at the size (H, W) of its ground truth; the host waits for no GPU."""
    best, label = _best_class(cams.cam, cams.class_index, truth.shape)
    return ThresholdCounts.from_scores(best, label, torch.from_numpy(truth), num_labels, thresholds)


class SegmenterEvaluator:
    """Measures the label maps of the segmenter, which sees only the image, not its image labels."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @classmethod
    def load(cls, segmenter: Path, config: PredictConfig, device: str = "cpu") -> "SegmenterEvaluator":
        """Evaluator of the network in the folder ``segmenter``."""
        return cls(Predictor.load(segmenter, config, device))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Count the rows of a data set that have ground truth: one row of `COUNTS_SCHEMA`."""
        return _counts_table("segmenter", *self.count(table))

    def count(self, table: pa.Table) -> tuple[ConfusionMatrix, int]:
        """Counts of the rows with ground truth, and the number of these rows."""
        num_labels = 1 + len(self.predictor.spec.class_names)
        total, images = ConfusionMatrix.zeros(num_labels), 0
        for _, pixels, truth in _with_truth(table):
            prediction = torch.from_numpy(self.predictor(pixels))
            total = total + ConfusionMatrix.from_labels(prediction, torch.from_numpy(truth), num_labels)
            images += 1
        return total, images


class LabelEvaluator:
    """Measures pseudo labels, joined with the data set by image_id."""

    def __init__(self, labels: Path, num_labels: int) -> None:
        self.labels, self.num_labels = ShardReader(labels), num_labels

    def __call__(self, table: pa.Table) -> pa.Table:
        """Count the rows of a data set that have ground truth: one row of `COUNTS_SCHEMA`.

        An image without a pseudo label counts as all background, and so do pixels whose pseudo label is 255
        (ignore), as in an image whose labels are unknown.
        """
        total, images = ConfusionMatrix.zeros(self.num_labels), 0
        for row in table.select(["image_id", "mask"]).to_pylist():
            if row["mask"] is None:
                continue
            truth = torch.from_numpy(decode_mask(row["mask"]))
            total = total + ConfusionMatrix.from_labels(
                self._label(row["image_id"], truth), truth, self.num_labels
            )
            images += 1
        return _counts_table("pseudo_label", total, images)

    def _label(self, image_id: str, truth: Tensor) -> Tensor:
        try:
            png = self.labels.read(self.labels.index_of(image_id), ["pseudo_label"])["pseudo_label"]
        except KeyError:
            png = None
        return torch.zeros_like(truth) if png is None else torch.from_numpy(decode_mask(png))


def measure_labels(dataset: Path, labels: Path, num_labels: int) -> ConfusionMatrix:
    """Confusion counts of an output of ``label`` on all images with ground truth, in this process."""
    evaluator = LabelEvaluator(labels, num_labels)
    tables = (read_chunk(chunk, ["image_id", "mask"]) for chunk in plan_chunks(dataset))
    counted = add_up(row for table in tables for row in evaluator(table).to_pylist())
    return counted["pseudo_label"][0]


class Evaluator:
    """Runs several evaluators in one pass over the data set.

    Args:
        measures: functions that make the evaluators above, each with its keyword arguments.
    """

    def __init__(self, measures: Sequence[tuple[Callable[..., Any], Mapping[str, Any]]]) -> None:
        self.measures = [measure(**arguments) for measure, arguments in measures]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Count the rows of a data set: the `COUNTS_SCHEMA` rows of all evaluators."""
        return pa.concat_tables([measure(table) for measure in self.measures])


def add_up(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[ConfusionMatrix, int]]:
    """Add up rows of `COUNTS_SCHEMA` by name: name -> (confusion matrix, number of images).

    CAMs have a matrix for each of their thresholds, with a name as from `name_of_threshold`.
    """
    totals: dict[str, tuple[ThresholdCounts, int]] = {}
    for row in rows:
        total, images = totals.get(row["name"], (None, 0))
        if total is None:
            total = ThresholdCounts.zeros(row["labels"], row["thresholds"])
        cells = torch.tensor(np.asarray(row["cells"], np.int64))
        total.counts.view(-1)[cells] += torch.tensor(np.asarray(row["counts"], np.int64))
        totals[row["name"]] = (total, images + row["images"])
    found: dict[str, tuple[ConfusionMatrix, int]] = {}
    for name, (total, images) in totals.items():
        if total.thresholds:
            found |= {name_of_threshold(t): (matrix, images) for t, matrix in total.matrices().items()}
        else:
            found[name] = (ConfusionMatrix(total.counts[..., 0]), images)
    return found


def name_of_threshold(threshold: float) -> str:
    """Name of the counts of CAMs at a background threshold, such as "cam@0.3"."""
    return f"cam@{float(threshold)}"


def describe_counts(
    rows: Iterable[dict[str, Any]], class_names: Sequence[str], threshold: float
) -> dict[str, Measure]:
    """Results by name, from rows of `COUNTS_SCHEMA`.

    CAMs have two results: ``cam_fixed`` at ``threshold``, and ``cam_best`` at the threshold with the highest
    mIoU, which takes ground truth to find.
    """
    totals = add_up(rows)
    cams = [key for key in totals if key.startswith("cam@")]
    found: dict[str, Measure] = {}
    if cams:
        best = max(cams, key=lambda key: totals[key][0].miou())
        for name, key in (("cam_fixed", name_of_threshold(threshold)), ("cam_best", best)):
            figures = describe_measure(*totals[key], class_names)
            found[name] = {"threshold": float(key.removeprefix("cam@")), **figures}
    return found | {key: describe_measure(*totals[key], class_names) for key in totals if key not in cams}


def describe_measure(matrix: ConfusionMatrix, images: int, class_names: Sequence[str]) -> Measure:
    """Results of a confusion matrix over ``images`` images; ``class_names`` don't include the background."""
    names = ("background", *class_names)
    iou = [None if math.isnan(value) else value for value in matrix.iou().tolist()]
    return {
        "miou": matrix.miou(),
        "images": images,
        "iou": dict(zip(names, iou)),
        "confusion": describe_confusion(matrix, names),
    }


def describe_confusion(matrix: ConfusionMatrix, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Pixels by true class name, then by predicted class name, without zeros; for JSON.

    Args:
        names: names of all classes, background first.
    """
    rows = {truth: dict(zip(names, counts)) for truth, counts in zip(names, matrix.to_list())}
    found = {truth: {name: n for name, n in row.items() if n} for truth, row in rows.items()}
    return {truth: row for truth, row in found.items() if row}


def _with_truth(table: pa.Table) -> Iterable[tuple[dict[str, Any], NDArray[np.uint8], NDArray[np.uint8]]]:
    """Row, pixels and ground truth of each image that has ground truth."""
    for row in table.select(["image_id", "image", "orientation", "image_labels", "mask"]).to_pylist():
        if row["mask"] is not None:
            yield row, decode_image(row["image"], row["orientation"]), decode_mask(row["mask"])


def _best_class(cam: Tensor, class_index: Tensor, image_hw: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Highest CAM value (H, W) of one image's classes, and its label (class c as c + 1); zeros if no CAM."""
    if not len(cam):
        zeros = torch.zeros(image_hw, device=cam.device)
        return zeros, zeros.to(torch.uint8)
    best, which = resize_maps(cam[None], (image_hw[0], image_hw[1]))[0].max(0)
    return best, (upload(class_index, cam.device)[which] + 1).to(torch.uint8)


def _counts_table(name: str, total: ConfusionMatrix | ThresholdCounts, images: int) -> pa.Table:
    """One row of `COUNTS_SCHEMA`."""
    counts = total.counts.flatten().cpu().numpy()
    (cells,) = counts.nonzero()
    thresholds = total.thresholds if isinstance(total, ThresholdCounts) else ()
    row = {"name": name, "labels": len(total.counts), "thresholds": thresholds, "images": images}
    row |= {"cells": cells, "counts": counts[cells]}
    return pa.Table.from_pylist([row], schema=COUNTS_SCHEMA)
