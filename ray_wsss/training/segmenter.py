"""Train the segmenter on pseudo labels."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.data.reader import ShardReader, folders_of, named
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.label_format import ignore_label
from ray_wsss.models.segmenter import SegmenterSpec, build_segmenter
from ray_wsss.ops.device import mixed_precision
from ray_wsss.ops.pseudo_label import ignore_rim
from ray_wsss.ops.resize import resize_maps, slices_of
from ray_wsss.runs.curation.masks import KEPT, HandMasks
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.image_labels import known_labels, log_left_out
from ray_wsss.training.loop import Batch, Counts, Session, TrainingRun, share_of
from ray_wsss.training.validation import SegmenterValidation

log = logging.getLogger(__name__)

_LOGITS_AT_ONCE = 2**28
"""Logits of pixels that exist at a time, unless one image has more; with the softmax and the gradient of each
they take about 4 GiB."""
_LEAST_WEIGHT = 1e-6
"""Least sum of weights to divide by; a batch without a labelled pixel has 0, and a loss of 0."""


class SegmenterStep:
    """Loss of one pass: cross-entropy of each pixel against the pseudo label; ignored labels are left out.

    If the batch has ``weight`` (B,) or ``pixel_weight`` (B, P, P), the mean over its pixels is weighted by
    their product.

    Args:
        rim_px: pixels on both sides of a border between labels that are ignored too.
    """

    def __init__(self, bf16: bool = False, rim_px: int = 0) -> None:
        self.bf16, self.rim_px = bf16, rim_px

    def counts(self, batch: Batch) -> Counts:
        """Number of pixels with a label that is not ignored, or the sum of their weights."""
        target, weight = self._target(batch), _weight_of(batch)
        labelled = target != ignore_label(target)
        return {"labelled": labelled.sum() if weight is None else (labelled * weight).sum()}

    def _target(self, batch: Batch) -> Tensor:
        return ignore_rim(batch["pseudo_label"], self.rim_px) if self.rim_px else batch["pseudo_label"]

    def __call__(
        self, model: nn.Module, batch: Batch, counts: Counts, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        target, weight = self._target(batch), _weight_of(batch)
        with mixed_precision(target.device, self.bf16):
            logits = model(batch["image"])
        if weight is not None:
            total = sum_cross_entropy(logits, target, weight=weight)
            loss = total / counts["labelled"].clamp(min=_LEAST_WEIGHT)
            return loss, {"seg": loss}
        total = sum_cross_entropy(logits, target)
        labelled = target != ignore_label(target)
        loss = total / labelled.sum().clamp(min=1) * share_of(labelled, counts["labelled"])
        return loss, {"seg": loss}


def _weight_of(batch: Batch) -> Tensor | None:
    """Weights of pixels (B, P, P), or (B, 1, 1) if an image's pixels have the same; None: all have 1."""
    of_images = batch["weight"][:, None, None] if "weight" in batch else None
    of_pixels = batch.get("pixel_weight")
    return of_pixels if of_images is None else of_images if of_pixels is None else of_images * of_pixels


def sum_cross_entropy(
    logits: Float[Tensor, "B K _h _w"],
    labels: Integer[Tensor, "B P P"],
    at_once: int = _LOGITS_AT_ONCE,
    *,
    weight: Float[Tensor, "B #P #P"] | None = None,
) -> Float[Tensor, ""]:
    """Sum of the cross-entropy of all pixels that are not ignored, from logits of the head's cells.

    A softmax over 1,000 classes needs the logits of all of them at each pixel: 1 GiB for a crop of 512
    pixels. They are made a few images at a time, and made again for the gradient, if a batch has more logits
    than ``at_once``.

    Args:
        weight: factor of each pixel, or of all pixels of an image; None: 1.
    """
    size_hw = (labels.shape[-2], labels.shape[-1])
    parts = slices_of(len(logits), logits.shape[1] * math.prod(size_hw), at_once)

    def of_part(cells: Tensor, target: Tensor, factor: Tensor | None) -> Tensor:
        losses = F.cross_entropy(
            resize_maps(cells, size_hw),
            target.long(),
            ignore_index=ignore_label(target),
            reduction="sum" if factor is None else "none",
        )
        return losses if factor is None else (losses * factor).sum()

    def weight_of(part: slice) -> Tensor | None:
        return weight[part] if weight is not None else None

    if len(parts) == 1:
        return of_part(logits, labels, weight)
    sums = [checkpoint(of_part, logits[at], labels[at], weight_of(at), use_reentrant=False) for at in parts]
    return torch.stack(sums).sum()


def train_segmenter(
    recipe: Recipe,
    dataset: Path,
    labels: Path | Sequence[Path],
    session: Session,
    *,
    corrections: HandMasks | None = None,
    rejected: frozenset[str] = frozenset(),
    validation: Path | None = None,
    limit: ErrorLimit | None = None,
) -> None:
    """Train the segmenter on images of ``dataset`` and pseudo labels of ``labels``, as one worker.

    Images whose image labels are unknown are left out. Images that have none of the classes are background.

    Args:
        recipe: settings whose epochs are resolved (`training.length.resolve_epochs`).
        labels: output of label, or several, joined with ``dataset`` by image_id.
        corrections: masks that replace the pseudo labels of their images.
        rejected: ids of images whose pseudo labels are left out; corrected ones are not.
        validation: data set with ground truth, to measure the segmenter during training.
        limit: how many images may be broken; None: the default.

    Raises:
        UserError: too few images have a pseudo label, too many are broken, or settings contradict each other.
    """
    metadata = DatasetMetadata.load(dataset)
    config = recipe.segmenter
    rows = labelled_rows(dataset, labels, config.batch_size, corrections=corrections, rejected=rejected)
    for folder in folders_of(labels) if config.weigh_by == "score" else ():
        if "segments" not in ShardReader(folder).columns:
            raise UserError(
                f"{folder} has no column segments; expected segmenter.weigh_by none, or label's output"
            )
    if config.batch_size // config.accumulate < 2:
        raise UserError(
            f"segmenter.batch_size is {config.batch_size} with segmenter.accumulate {config.accumulate}; "
            "expected at least 2 images per pass, because the head has batch norm"
        )
    crops = TrainingCrops(
        dataset,
        rows,
        num_classes=len(metadata.class_names),
        augment=config.augment,
        seed=config.seed,
        labels=labels,
        corrections=corrections,
        correction_weight=config.correction_weight,
        by_score=config.weigh_by == "score",
    )
    spec = SegmenterSpec.of(config, metadata.class_names)
    torch.manual_seed(config.seed)
    model = build_segmenter(spec, pretrained=config.pretrained, checkpoint=config.backbone_checkpoint)
    model.backbone.freeze(config.freeze_stages, config.freeze_norm)
    run = TrainingRun(
        model=model, spec=spec, config=config, crops=crops, session=session, name="segmenter", limit=limit
    )
    step = SegmenterStep(config.precision == "bf16", config.ignore_rim_px)
    run.train(step, SegmenterValidation(recipe, spec, validation, dataset, session.device))


def labelled_rows(
    dataset: Path,
    labels: Path | Sequence[Path],
    batch_size: int,
    *,
    corrections: HandMasks | None = None,
    rejected: frozenset[str] = frozenset(),
    tell: bool = False,
) -> list[int]:
    """Rows of ``dataset`` to train on: with a corrected mask, or a pseudo label that was not rejected.

    Rows whose image labels are unknown are left out, whatever ``labels`` says of them (version 0.1 labelled
    them as background), unless they have a mask that was made by hand.

    Args:
        tell: log how many images are left out because they have no row in ``labels``, or because their image
            labels are unknown.

    Raises:
        UserError: the rows are fewer than one batch.
    """
    reader, by_hand = ShardReader(dataset), corrections if corrections is not None else ()
    found = [_good_labels(ShardReader(folder)) for folder in folders_of(labels)]
    listed, good, kept = (set[str]().union(*ids) for ids in zip(*found))
    known = known_labels(reader)
    rows: list[int] = []
    unknown = unlisted = 0
    for row, image_id in enumerate(reader.image_ids):
        if image_id in by_hand:
            rows.append(row)
        elif image_id in good and image_id not in rejected:
            usable = row in known or image_id in kept
            unknown += not usable
            rows += [row] if usable else []
        unlisted += image_id not in listed and image_id not in by_hand
    if tell and unlisted:
        log.info("%s images are left out, because %s has no label of them", f"{unlisted:,}", named(labels))
    if tell:
        log_left_out(unknown)
    if len(rows) < batch_size:
        raise UserError(
            f"{dataset} and {named(labels)} have {len(rows)} labelled images in common; "
            f"expected at least one batch of {batch_size} (segmenter.batch_size)"
        )
    return rows


def _good_labels(labels: ShardReader) -> tuple[set[str], set[str], set[str]]:
    """Ids of all images, of those that labelling did not fail on, and of those whose masks it kept."""
    good: set[str] = set()
    kept: set[str] = set()
    columns = ["error", *(["source"] if "source" in labels.columns else [])]
    for row, image_id in enumerate(labels.image_ids):
        found = labels.read(row, columns)
        if found["error"] is None:
            good.add(image_id)
            if found.get("source") == KEPT:
                kept.add(image_id)
    return set(labels.image_ids), good, kept
