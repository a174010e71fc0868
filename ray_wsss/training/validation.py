"""Validation during training: metrics on a subset of a data set, and pictures of a few images."""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import LabelConfig, Recipe
from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata
from ray_wsss.figures.overview import OverviewRow, render_overview
from ray_wsss.label_format import LabelMap, labels_to_array
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.promptable.encoder import load_encoder
from ray_wsss.models.promptable.interface import Embeddings
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec
from ray_wsss.ops.metrics import ConfusionMatrix, ThresholdCounts, threshold_ious
from ray_wsss.ops.resize import resize_map, shrink
from ray_wsss.runs.cam_threshold import fixed_threshold
from ray_wsss.runs.read_chunks import IMAGE_COLUMNS
from ray_wsss.stages.cams import cams_of
from ray_wsss.stages.evaluate import CamEvaluator, SegmenterEvaluator
from ray_wsss.stages.point_prompts import aggregate, decode_pairs, find_prompts
from ray_wsss.stages.predict import Predictor
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.loop import Session

PICTURES = 4
"""Number of images in a picture."""


class Sample:
    """A subset of the images of a data set, evenly spread over it.

    Args:
        images: number of images; a smaller data set is taken as a whole.
    """

    def __init__(self, dataset: Path, images: int) -> None:
        self.reader = ShardReader(dataset)
        self.class_names = DatasetMetadata.load(dataset).class_names
        count = min(images, len(self.reader))
        self.rows = [len(self.reader) * k // count for k in range(count)]
        self.columns = [*IMAGE_COLUMNS, "mask"]

    def tables(self, rank: int, world_size: int) -> Iterator[pa.Table]:
        """One worker's share: an empty table, since the share may have no image, then one table per image."""
        yield pa.schema([IMAGE_SCHEMA.field(name) for name in self.columns]).empty_table()
        for row in self.rows[rank::world_size]:
            record = self.reader.read(row, self.columns)
            yield pa.table({name: [value] for name, value in record.items()})

    def first(self, count: int) -> list[dict[str, Any]]:
        """Records of the first ``count`` images that have image labels and can be decoded."""
        records = (self.reader.read(row, self.columns) for row in self.rows)
        return list(islice((record for record in records if self._can_be_drawn(record)), count))

    def _can_be_drawn(self, record: dict[str, Any]) -> bool:
        if not record["image_labels"]:
            return False
        try:
            decode_image(record["image"], record["orientation"])
            return record["mask"] is None or decode_mask(record["mask"], len(self.class_names)).size > 0
        except ValueError:
            return False


class CamValidation:
    """Measures the CAM mIoU of a classifier, and draws its CAMs, points and pseudo labels.

    The CAMs are computed at a single scale, for speed.

    Args:
        validation: data set with ground truth to measure on; None: measure nothing.
        dataset: training data set, drawn if ``validation`` is None.
        cpm: has SAM, for the pseudo labels in the pictures; None: pictures without points and pseudo labels.
            If it has no image encoder, one is loaded for the first picture, and dropped after that.
    """

    def __init__(
        self,
        recipe: Recipe,
        validation: Path | None,
        dataset: Path,
        cpm: Cpm | None,
        device: torch.device,
    ) -> None:
        # The side that the finished classifier will have by its manifest (`runs.classifier_side`).
        side_px = recipe.label.classifier_side_px or max(recipe.classifier.augment.long_side_px)
        self.config = replace(recipe.label, scales=(1.0,), flip=False, classifier_side_px=side_px)
        self.threshold = fixed_threshold(recipe.evaluate, with_cpm=cpm is not None)
        self.device = device
        self.sample = Sample(validation, recipe.classifier.validate_images) if validation else None
        pictured = self.sample or Sample(dataset, PICTURES)
        self.pictured = _Pictured(pictured, self.config, recipe, cpm, device)

    def measure(self, model: Classifier, session: Session) -> dict[str, float]:
        """CAM mIoU in [0, 1], at the fixed background threshold and at the one with the highest mIoU."""
        if self.sample is None:
            return {}
        classes = len(self.sample.class_names)
        evaluator = CamEvaluator(model, classes, self.config, self.threshold, self.device)
        # Counts stay on the device until the end, so that the host waits for a GPU only once.
        tables = self.sample.tables(session.rank, session.world_size)
        own = [evaluator.count(table)[0] for table in tables]
        counts = ThresholdCounts.total(own, 1 + classes, evaluator.thresholds).by_class()
        total = _sum_over_workers(counts, session)
        if not total.any():
            return {}
        mious = dict(zip(evaluator.thresholds, threshold_ious(total).nanmean(1).tolist()))
        return {"val_miou": mious[self.threshold], "val_miou_best_threshold": max(mious.values())}

    def picture(self, model: Classifier) -> NDArray[np.uint8] | None:
        """Draw image, CAM, points, pseudo label and ground truth of a few images; None if none has labels."""
        return self.pictured.draw(model)


class SegmenterValidation:
    """Measures the mIoU of a segmenter, and draws its predictions.

    Args:
        validation: data set with ground truth to measure on; None: measure nothing.
        dataset: training data set, drawn if ``validation`` is None.
    """

    def __init__(
        self,
        recipe: Recipe,
        spec: SegmenterSpec,
        validation: Path | None,
        dataset: Path,
        device: torch.device,
    ) -> None:
        self.config, self.spec, self.device = recipe.predict, spec, device
        self.sample = Sample(validation, recipe.segmenter.validate_images) if validation else None
        self.pictured = self.sample or Sample(dataset, PICTURES)

    def measure(self, model: Segmenter, session: Session) -> dict[str, float]:
        """mIoU of the segmenter, in [0, 1]."""
        if self.sample is None:
            return {}
        evaluator = SegmenterEvaluator(self._predictor(model))
        tables = self.sample.tables(session.rank, session.world_size)
        own = reduce(torch.add, (evaluator.count(table)[0].counts for table in tables))
        total = _sum_over_workers(own, session)
        return {"val_miou": ConfusionMatrix(total).miou()} if total.any() else {}

    def picture(self, model: Segmenter) -> NDArray[np.uint8] | None:
        """Draw image, prediction and ground truth of a few images; None if none has image labels."""
        predictor, rows = self._predictor(model), []
        for record in self.pictured.first(PICTURES):
            pixels = shrink(decode_image(record["image"], record["orientation"]), self.config.max_side_px)
            truth = _truth(record, pixels, len(self.pictured.class_names))
            maps = {"segmenter": predictor(pixels)} | truth
            rows.append(OverviewRow(image=pixels, cams={}, points=[], label_maps=maps))
        return render_overview(rows, self.pictured.class_names) if rows else None

    def _predictor(self, model: Segmenter) -> Predictor:
        return Predictor(model, self.spec, self.config, str(self.device))


class _Pictured:
    """Draws a few images; keeps SAM's embeddings of them, so that SAM encodes each once."""

    def __init__(
        self, sample: Sample, config: LabelConfig, recipe: Recipe, cpm: Cpm | None, device: torch.device
    ) -> None:
        self.class_names, self.config, self.cpm = sample.class_names, config, recipe.cpm
        self.sam_config, self.device = recipe.sam, device
        self.sam, self.encoder = (cpm.sam, cpm.encoder) if cpm is not None else (None, None)
        self.records = sample.first(PICTURES)
        self.embeddings: list[Embeddings] = []

    def draw(self, model: Classifier) -> NDArray[np.uint8] | None:
        if self.sam is not None and self.records and not self.embeddings:
            encoder = self.encoder or load_encoder(self.sam_config, self.device)
            self.embeddings = [encoder([self._pixels(record)]) for record in self.records]
        rows = [self._row(model, k, record) for k, record in enumerate(self.records)]
        return render_overview(rows, self.class_names) if rows else None

    def _pixels(self, record: dict[str, Any]) -> NDArray[np.uint8]:
        return shrink(decode_image(record["image"], record["orientation"]), self.config.max_side_px)

    def _row(self, model: Classifier, k: int, record: dict[str, Any]) -> OverviewRow:
        pixels = self._pixels(record)
        cams = cams_of(model, [pixels], [record["image_labels"]], self.config)
        points: list[tuple[int, float, float]] = []
        maps: dict[str, LabelMap] = {}
        if self.sam is not None:
            points_yx = find_prompts(cams, self.cpm, guess=False)
            (masks,) = decode_pairs(
                self.sam, self.embeddings[k], [cams], [points_yx], self.cpm, len(points_yx)
            )
            maps["pseudo label"] = labels_to_array(aggregate(self.sam, cams, masks, 1, self.cpm)[0][0])
            for class_index, found in zip(cams.class_index.tolist(), points_yx):
                points += [(class_index, x + 0.5, y + 0.5) for y, x in found.tolist()]
        maps |= _truth(record, pixels, len(self.class_names))
        return OverviewRow(
            image=pixels, cams={"CAM": cams.cam.amax(0).cpu().numpy()}, points=points, label_maps=maps
        )


def _truth(record: dict[str, Any], pixels: NDArray[np.uint8], num_classes: int) -> dict[str, LabelMap]:
    """Ground truth of an image, at the size of ``pixels``; empty if it has none."""
    if record["mask"] is None:
        return {}
    truth = decode_mask(record["mask"], num_classes)
    return {"ground truth": resize_map(truth, (pixels.shape[0], pixels.shape[1]))}


def _sum_over_workers(own: Tensor, session: Session) -> Tensor:
    """Counts of all workers, int64 on the CPU, from each worker's own."""
    own = own.double().to(session.device)
    return (session.mean_over_workers(own) * session.world_size).round().long().cpu()
