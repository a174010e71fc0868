"""Images of a report's gallery (the best, the worst, and some at random) with the results of all stages.

Stages don't save CAMs, and predictions may be missing. Both are computed here from the networks, on the CPU.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ray_wsss.config import LabelConfig, PredictConfig
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.export.source import PredictionSource
from ray_wsss.label_format import LabelMap
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.resize import group_by_size, shrink
from ray_wsss.ops.tiles import needs_tiles
from ray_wsss.report.gallery import GalleryImage, MaskOfClass
from ray_wsss.report.survey import SurveyedImage
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.curation.agreement import mean_iou
from ray_wsss.runs.curation.doubt import agreement, doubt_with
from ray_wsss.stages.cams import cams_of
from ray_wsss.stages.label import score_of
from ray_wsss.stages.predict import Predictor
from ray_wsss.stages.tiles.cams import tiled_cams

_BATCH = 16
"""Images in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class ChosenImage:
    """An image that the gallery shows."""

    image: SurveyedImage
    group: str
    """best, worst or random; empty if all images are shown."""


def choose_images(images: Sequence[SurveyedImage], count: int | None, seed: int = 0) -> list[ChosenImage]:
    """Choose images for the gallery: a third the best, a third the worst, the rest at random.

    Images are ranked by IoU if there is ground truth, else by doubt; without either, all are random.

    Args:
        count: number of images to choose. All are chosen if there are no more than this, or with None.

    Returns:
        The chosen images in the order of the data set.
    """
    if count is None or len(images) <= count:
        return [ChosenImage(image=image, group="") for image in images]
    quality = {image.row: image.iou for image in images if image.iou is not None}
    quality = quality or {image.row: -image.doubt for image in images if image.doubt is not None}
    ranked = sorted(quality, key=quality.__getitem__)
    third = min(count // 3, len(ranked) // 2)
    groups = dict.fromkeys(ranked[:third], "worst")
    groups |= dict.fromkeys(ranked[len(ranked) - third :], "best")
    others = [image.row for image in images if image.row not in groups]
    rows = random.Random(seed).sample(others, min(len(others), count - len(groups)))
    groups |= dict.fromkeys(rows, "random")
    return [ChosenImage(image=image, group=groups[image.row]) for image in images if image.row in groups]


class GallerySource:
    """Reads the gallery's images and labels, and computes their CAMs and predictions.

    Args:
        classifier: folder of the network that makes the CAMs; None for no CAMs.
        config: settings of the CAMs.
        segmenter: folder of the network that predicts if ``predictions`` is None; None for no predictions.
        predictions: output of predict for the same images.
        failed: list to which (image id, reason) of images that can't be shown is added.
    """

    def __init__(
        self,
        dataset: Path,
        labels: Path | None,
        *,
        classifier: Path | None,
        config: LabelConfig,
        segmenter: Path | None,
        predictions: Path | None,
        failed: list[tuple[str, str]],
    ) -> None:
        self.dataset, self.failed = ShardReader(dataset), failed
        self.num_classes = len(DatasetMetadata.load(dataset).class_names)
        self.config = with_classifier_side(config, classifier) if classifier is not None else config
        self.labels = ShardReader(labels) if labels is not None else None
        self.classifier = load_classifier(classifier)[0] if classifier is not None else None
        self.predictions = PredictionSource(predictions, dataset) if predictions is not None else None
        self.predictor = (
            Predictor.load(segmenter, PredictConfig())
            if segmenter is not None and predictions is None
            else None
        )

    def __call__(self, chosen: Sequence[ChosenImage]) -> Iterator[GalleryImage]:
        """Yield the images in the given order, of which a few are in memory at a time."""
        for first in range(0, len(chosen), _BATCH):
            batch = chosen[first : first + _BATCH]
            images = [image for choice in batch if (image := self._read(choice)) is not None]
            self._add_cams(images)
            self._add_predictions(images)
            yield from images

    def _read(self, choice: ChosenImage) -> GalleryImage | None:
        surveyed = choice.image
        row = self.dataset.read(surveyed.row, ["image_id", "image", "orientation", "image_labels", "mask"])
        try:
            image = GalleryImage(
                image_id=surveyed.image_id,
                group=choice.group,
                pixels=decode_image(row["image"], row["orientation"]),
                image_labels=row["image_labels"] or (),
                score=surveyed.score,
                iou=surveyed.iou,
                truth=decode_mask(row["mask"], self.num_classes) if row["mask"] is not None else None,
            )
            if self.labels is not None:
                label = self.labels.read(self.labels.index_of(surveyed.image_id))
                image.pseudo_label = decode_mask(label["pseudo_label"], self.num_classes)
                hw = (image.pixels.shape[0], image.pixels.shape[1])
                image.masks = [_mask_of(segment, hw) for segment in label["segments"]]
                image.doubt = surveyed.doubt
            return image
        except ValueError as error:
            self.failed.append((surveyed.image_id, str(error)))
            return None

    def _add_cams(self, images: Sequence[GalleryImage]) -> None:
        if self.classifier is None:
            return
        for image in images:
            if image.image_labels and self._is_large(image):
                image.cam = tiled_cams(
                    self.classifier, image.pixels, image.image_labels, self.config
                ).highest()
        images = [image for image in images if not self._is_large(image)]
        seen = [shrink(image.pixels, self.config.max_side_px) for image in images]
        for members in group_by_size(seen, self.config.cam_batch_size, self.config.max_batch_pixels):
            cams = cams_of(
                self.classifier,
                [seen[at] for at in members],
                [images[at].image_labels for at in members],
                self.config,
            )
            for k, at in enumerate(members):
                own = cams.cam[cams.image_index == k]
                images[at].cam = own.amax(0).numpy() if len(own) else None

    def _is_large(self, image: GalleryImage) -> bool:
        return needs_tiles((image.pixels.shape[0], image.pixels.shape[1]), self.config.tile_px)

    def _add_predictions(self, images: Sequence[GalleryImage]) -> None:
        if self.predictions is not None:
            for image in images:
                png = self.predictions.mask_of(image.image_id)
                image.prediction = decode_mask(png, self.num_classes) if png is not None else None
        if self.predictor is not None:
            config = self.predictor.config
            seen = [shrink(image.pixels, config.max_side_px) for image in images]
            most_pixels = config.max_batch_pixels(1 + len(self.predictor.spec.class_names))
            for members in group_by_size(seen, config.batch_size, most_pixels):
                sizes = [(images[at].pixels.shape[0], images[at].pixels.shape[1]) for at in members]
                label_maps = self.predictor.predict([seen[at] for at in members], sizes)
                for at, label_map in zip(members, label_maps):
                    images[at].prediction = label_map
        for image in images:
            # The prediction may be of another image with the same name.
            if image.pseudo_label is not None and _same_size(image.prediction, image.pseudo_label):
                image.doubt = doubt_with(image.doubt, agreement(image.pseudo_label, image.prediction))
            if image.truth is not None and _same_size(image.prediction, image.truth):
                image.prediction_iou = mean_iou(image.prediction, image.truth)


def _same_size(prediction: LabelMap | None, other: LabelMap) -> TypeGuard[LabelMap]:
    return prediction is not None and prediction.shape == other.shape


def _mask_of(segment: dict[str, Any], image_hw: tuple[int, int]) -> MaskOfClass:
    return MaskOfClass(
        class_index=segment["class_index"],
        points_xy=segment["points_xy"],
        point_labels=segment.get("point_labels") or (),
        box_xyxy=segment.get("box_xyxy"),
        mask=decode_rle(segment["rle"], image_hw),
        score=score_of(segment),
        sam_score=segment["sam_score"],
        cam_mean=segment["cam_mean"],
        stability_score=segment.get("stability_score"),
    )
