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
from ray_wsss.label_format import LabelMap, ignore_label, labels_to_tensor
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.device import upload
from ray_wsss.ops.metrics import ConfusionMatrix, ThresholdCounts, threshold_ious
from ray_wsss.ops.resize import resize_maps, shrink
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.read_chunks import plan_chunks, read_chunk
from ray_wsss.stages.cams import PairCams, cams_of
from ray_wsss.stages.predict import Predictor

THRESHOLDS = tuple(k / 100 for k in range(1, 100))
"""Background thresholds, 0.01 to 0.99, that the best CAM mIoU is chosen from."""

_CELLS = 2**20
"""Cells, of 16 bytes, that may be kept before repeated ones are merged."""

COUNTS_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),  # "cam", "segmenter" or "pseudo_label"
        pa.field("labels", pa.int32()),  # number of labels, background included
        pa.field("thresholds", pa.list_(pa.float64())),  # of CAMs, else none
        # Pixels of `ops.metrics.ThresholdCounts`, without zeros: flat index, and number.
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
        parts: list[ThresholdCounts] = []
        for row, pixels, truth in _with_truth(table, self.num_classes):
            cams = cams_of(
                self.model,
                [shrink(pixels, self.config.max_side_px)],
                [row["image_labels"]],
                self.config,
            )
            parts.append(count_cams(cams, truth, 1 + self.num_classes, self.thresholds))
        return ThresholdCounts.total(parts, 1 + self.num_classes, self.thresholds), len(parts)


def count_cams(
    cams: PairCams, truth: LabelMap, num_labels: int, thresholds: Sequence[float]
) -> ThresholdCounts:
    """Counts of the CAMs of one image, at the size (H, W) of its ground truth; the host waits for no GPU."""
    best, label = _best_class(cams.cam, cams.class_index, truth.shape)
    return ThresholdCounts.from_scores(
        best,
        label,
        labels_to_tensor(truth),
        num_labels,
        thresholds,
        ignore_label(truth),
        labels=[c + 1 for c in cams.class_index.tolist()] or [0],
    )


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
        num_classes = len(self.predictor.spec.class_names)
        total, images = ConfusionMatrix.zeros(1 + num_classes), 0
        for _, pixels, truth in _with_truth(table, num_classes):
            total = total + compare_labels(self.predictor(pixels), truth, 1 + num_classes)
            images += 1
        return total, images


class LabelEvaluator:
    """Measures pseudo labels, joined with the data set by image_id."""

    def __init__(self, labels: Path | Sequence[Path], num_labels: int) -> None:
        self.labels, self.num_labels = ShardReader(labels), num_labels

    def __call__(self, table: pa.Table) -> pa.Table:
        """Count the rows of a data set that have ground truth: one row of `COUNTS_SCHEMA`.

        An image without a pseudo label counts as all background, and so do ignored pixels of a pseudo label,
        as in an image whose labels are unknown.
        """
        total, images = ConfusionMatrix.zeros(self.num_labels), 0
        for row in table.select(["image_id", "mask"]).to_pylist():
            if row["mask"] is None:
                continue
            truth = decode_mask(row["mask"], self.num_labels - 1)
            total = total + compare_labels(self._label(row["image_id"], truth), truth, self.num_labels)
            images += 1
        return _counts_table("pseudo_label", total, images)

    def _label(self, image_id: str, truth: LabelMap) -> LabelMap:
        png = (self.labels.find(image_id, ["pseudo_label"]) or {}).get("pseudo_label")
        return np.zeros_like(truth) if png is None else decode_mask(png, self.num_labels - 1)


def compare_labels(prediction: LabelMap, truth: LabelMap, num_labels: int) -> ConfusionMatrix:
    """Confusion counts of a label map (H, W); ignored pixels of `truth` are not counted."""
    maps = labels_to_tensor(prediction), labels_to_tensor(truth)
    return ConfusionMatrix.from_labels(*maps, num_labels, ignore_label(truth))


def measure_labels(dataset: Path, labels: Path, num_labels: int) -> ConfusionMatrix:
    """Confusion counts of an output of ``label`` on all images with ground truth, in this process."""
    evaluator = LabelEvaluator(labels, num_labels)
    tables = (read_chunk(chunk, ["image_id", "mask"]) for chunk in plan_chunks(dataset))
    counted = add_up(row for table in tables for row in evaluator(table).to_pylist())
    return counted["pseudo_label"][0].matrix()


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


def add_up(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[ThresholdCounts, int]]:
    """Add up rows of `COUNTS_SCHEMA` by name: name -> (counts, number of images).

    Label maps have counts without thresholds: their confusion matrix is ``counts.matrix()``.
    """
    totals: dict[str, _Sum] = {}
    for row in rows:
        if row["name"] not in totals:
            totals[row["name"]] = _Sum(row["labels"], tuple(row["thresholds"]))
        totals[row["name"]].add(row)
    return {name: (total.counts(), total.images) for name, total in totals.items()}


class _Sum:
    """Adds up counts; repeated cells are merged now and then, so that memory stays flat."""

    def __init__(self, num_labels: int, thresholds: tuple[float, ...]) -> None:
        self.num_labels, self.thresholds, self.images = num_labels, thresholds, 0
        self._parts: list[ThresholdCounts] = []
        self._cells, self._most = 0, _CELLS

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of `COUNTS_SCHEMA`."""
        cells, pixels = (torch.tensor(np.asarray(row[name], np.int64)) for name in ("cells", "counts"))
        self._parts.append(ThresholdCounts(cells, pixels, row["labels"], tuple(row["thresholds"])))
        self.images += row["images"]
        self._cells += len(cells)
        if self._cells > self._most:
            self._parts = [self.counts()]
            self._cells = len(self._parts[0].cells)
            self._most = 2 * self._cells + _CELLS

    def counts(self) -> ThresholdCounts:
        """The sum so far, each cell once."""
        return ThresholdCounts.total(self._parts, self.num_labels, self.thresholds).merged()


def describe_counts(
    rows: Iterable[dict[str, Any]], class_names: Sequence[str], threshold: float
) -> dict[str, Measure]:
    """Results by name, from rows of `COUNTS_SCHEMA`.

    CAMs have two results: ``cam_fixed`` at ``threshold``, and ``cam_best`` at the threshold with the highest
    mIoU, which takes ground truth to find.
    """
    found: dict[str, Measure] = {}
    totals = add_up(rows)
    if "cam" in totals:
        counts, images = totals.pop("cam")
        mious = dict(zip(counts.thresholds, threshold_ious(counts.by_class()).nanmean(1).tolist()))
        for name, t in (("cam_fixed", float(threshold)), ("cam_best", max(mious, key=lambda t: mious[t]))):
            found[name] = {"threshold": t, **describe_measure(counts.matrix(t), images, class_names)}
    for name, (counts, images) in totals.items():
        found[name] = describe_measure(counts.matrix(), images, class_names)
    return found


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
    found: dict[str, dict[str, int]] = {}
    rows, columns = matrix.counts.nonzero().T
    pixels = matrix.counts[rows, columns]
    for truth, prediction, count in zip(rows.tolist(), columns.tolist(), pixels.tolist()):
        found.setdefault(names[int(truth)], {})[names[int(prediction)]] = int(count)
    return found


def _with_truth(
    table: pa.Table, num_classes: int
) -> Iterable[tuple[dict[str, Any], NDArray[np.uint8], LabelMap]]:
    """Row, pixels and ground truth of each image that has ground truth."""
    for row in table.select(["image_id", "image", "orientation", "image_labels", "mask"]).to_pylist():
        if row["mask"] is not None:
            yield row, decode_image(row["image"], row["orientation"]), decode_mask(row["mask"], num_classes)


def _best_class(cam: Tensor, class_index: Tensor, image_hw: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Highest CAM value (H, W) of one image's classes, and its label (class c as c + 1); zeros if no CAM."""
    if not len(cam):
        zeros = torch.zeros(image_hw, device=cam.device)
        return zeros, zeros.int()
    best, which = resize_maps(cam[None], (image_hw[0], image_hw[1]))[0].max(0)
    return best, (upload(class_index, cam.device)[which] + 1).int()


def _counts_table(name: str, total: ConfusionMatrix | ThresholdCounts, images: int) -> pa.Table:
    """One row of `COUNTS_SCHEMA`."""
    if isinstance(total, ConfusionMatrix):
        counts = total.counts.flatten().cpu()
        cells, thresholds, labels = counts.nonzero()[:, 0], (), len(total.counts)
        pixels = counts[cells]
    else:
        total = total.merged()
        cells, pixels, thresholds, labels = total.cells, total.pixels, total.thresholds, total.num_classes
    row = {"name": name, "labels": labels, "thresholds": thresholds, "images": images}
    row |= {"cells": cells.numpy(), "counts": pixels.numpy()}
    return pa.Table.from_pylist([row], schema=COUNTS_SCHEMA)
