"""Train the classifier: classification loss, SAM's segments (SSC) and SAM's masks of CAM peaks (CPM)."""

import logging
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.data.reader import ShardReader, failed_images
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier, ClassifierOutput
from ray_wsss.models.first_weights import begin_classifier
from ray_wsss.models.promptable.build import build_decoder
from ray_wsss.models.promptable.encoder import load_encoder
from ray_wsss.ops.cam import list_classes
from ray_wsss.ops.device import mixed_precision, upload
from ray_wsss.ops.losses import StepLosses, classification_loss
from ray_wsss.ops.ssc import ssc_loss
from ray_wsss.stages.features.stored import check_weights, views_of
from ray_wsss.training.cpm import Cpm, cpm_pixels, supervise_cam
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.image_labels import (
    known_labels,
    log_left_out,
    log_negatives,
    warn_of_unlearnable,
)
from ray_wsss.training.loop import Batch, Counts, Session, TrainingRun, share_of
from ray_wsss.training.validation import CamValidation

log = logging.getLogger(__name__)


class ClassifierStep:
    """Losses of one pass: classification; SSC, if the batch has segment maps; CPM, after its warm-up."""

    def __init__(self, recipe: Recipe, cpm: Cpm | None) -> None:
        self.warmup_iters = recipe.cpm.warmup_iters
        self.temperature = recipe.cpm.temperature
        self.ssc_temperature = recipe.classifier.ssc_temperature
        self.weights = asdict(recipe.classifier.loss_weights)
        self.bf16 = recipe.classifier.precision == "bf16"
        self.cpm = cpm

    def counts(self, batch: Batch) -> Counts:
        """Number of pixels that CPM learns from, and of pixels covered by segments, for SSC."""
        counts = {"inside": cpm_pixels(batch).sum()} if self.cpm is not None else {}
        return counts | ({"segments": (batch["segments"] > 0).sum()} if "segments" in batch else {})

    def __call__(
        self, model: nn.Module, batch: Batch, counts: Counts, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        classes = self._listed_classes(batch) if self._on(iteration) else None
        with mixed_precision(batch["image_labels"].device, self.bf16):
            output = model(batch.get("image"), classes, cells=batch.get("cells"))
        logits = output.logits
        if "cells" in batch:
            # The padding has no features, so the mean over the cells of the image is that over all / share.
            logits = logits / batch["cells_inside"][:, None].clamp(min=1e-4)
        losses = StepLosses(
            cls=classification_loss(logits, batch["image_labels"]),
            ssc=self._ssc_loss(batch, output.features, counts) if "segments" in batch else None,
            cpm=self._cpm_loss(model, batch, output, classes, counts) if classes is not None else None,
        )
        return losses.total(self.weights), losses.parts()

    def _listed_classes(self, batch: Batch) -> Tensor:
        """Classes (B, M) of each image, on the device. Without a ``plan``, the host waits for a GPU."""
        known = batch["plan"].image_labels if "plan" in batch else batch["image_labels"].cpu()
        return upload(list_classes(known)[0], batch["image_labels"].device)

    def _on(self, iteration: int) -> bool:
        return self.cpm is not None and iteration >= self.warmup_iters

    def _ssc_loss(self, batch: Batch, features: Tensor, counts: Counts) -> Tensor:
        segments, bounds = batch["segments"], batch["plan"].segment_bounds if "plan" in batch else None
        loss = ssc_loss(features, segments, self.ssc_temperature, bounds)
        return loss * share_of(segments > 0, counts["segments"])

    def _cpm_loss(
        self, model: nn.Module, batch: Batch, output: ClassifierOutput, classes: Tensor, counts: Counts
    ) -> Tensor:
        assert self.cpm is not None
        bare = cast(Classifier, getattr(model, "module", model))  # without DDP: CPM needs no gradient
        pseudo_label = self.cpm(bare, batch, output.cells)
        assert output.class_maps is not None, "the pass was told the classes"
        return supervise_cam(
            output.class_maps, classes, pseudo_label, batch, counts["inside"], self.temperature
        )


def train_classifier(
    recipe: Recipe,
    dataset: Path,
    session: Session,
    *,
    segments: Path | None = None,
    embeddings: Path | None = None,
    features: Path | None = None,
    validation: Path | None = None,
    limit: ErrorLimit | None = None,
    until: int | None = None,
) -> None:
    """Train the classifier on the image labels of ``dataset``, as one of the session's workers.

    Images whose labels are unknown are left out. Images that have none of the classes are negatives.

    Args:
        recipe: settings whose epochs are resolved (`training.length.resolve_epochs`).
        segments: output of segment-everything; turns SSC on.
        embeddings: output of embed, for ``cpm.view=image``; images that embed failed on are left out.
        features: output of extract-features by the classifier's frozen backbone, which then sees no crop;
            images that extract-features failed on are left out.
        validation: data set with ground truth, to measure the CAMs during training.
        limit: how many images may be broken; None: the default.
        until: as for `TrainingRun.train`.

    Raises:
        UserError: too few images, too many broken ones, or settings that contradict each other.
    """
    metadata = DatasetMetadata.load(dataset)
    config = recipe.classifier
    with_cpm = recipe.cpm.enabled and recipe.cpm.warmup_iters < config.max_iters
    if recipe.cpm.enabled and not with_cpm and config.max_iters and session.rank == 0:
        log.warning(
            "cpm.warmup_iters is %d, and CPM never starts, since classifier.max_iters is %d; "
            "expected a shorter warm-up",
            recipe.cpm.warmup_iters,
            config.max_iters,
        )
    cache = embeddings if with_cpm and recipe.cpm.reads_embeddings else None
    rows = check_trainable(dataset, config.batch_size, without=_failed(cache, features))
    crops = TrainingCrops(
        dataset,
        rows,
        num_classes=len(metadata.class_names),
        augment=config.augment,
        seed=config.seed,
        segments=segments,
        embeddings=cache,
        features=views_of(features) if features is not None else None,
    )
    model, spec = begin_classifier(config, metadata.class_names)
    if features is not None:
        check_weights(features, model.backbone)
    model.backbone.freeze(config.freeze_stages, config.freeze_norm)
    cpm = _load_cpm(recipe, session) if with_cpm else None
    run = TrainingRun(
        model=model, spec=spec, config=config, crops=crops, session=session, name="classifier", limit=limit
    )
    validated = CamValidation(recipe, validation, dataset, cpm, session.device)
    run.train(ClassifierStep(recipe, cpm), validated, until)


def _load_cpm(recipe: Recipe, session: Session) -> Cpm:
    config, options = recipe.classifier, {"decode_batch_size": recipe.sam.decode_batch_size}
    bf16 = config.precision == "bf16"
    if recipe.cpm.view == "image":
        return Cpm(build_decoder(recipe.sam).to(session.device), recipe.cpm, bf16=bf16, **options)
    crops = (config.max_iters - recipe.cpm.warmup_iters) * config.batch_size // session.world_size
    return Cpm(load_encoder(recipe.sam, session.device, crops), recipe.cpm, bf16=bf16, **options)


def _failed(*folders: Path | None) -> set[str]:
    """Ids of the images that stages failed on."""
    return {image_id for folder in folders if folder is not None for image_id in failed_images(folder)}


def count_trainable(
    recipe: Recipe,
    dataset: Path,
    embeddings: Path | None,
    features: Path | None = None,
    *,
    tell: bool = False,
) -> int:
    """Number of images that the classifier is trained on, with CPM if it is enabled.

    Args:
        tell: as for `check_trainable`.

    Raises:
        UserError: there are fewer than one batch.
    """
    cached = embeddings if recipe.cpm.reads_embeddings else None
    return len(check_trainable(dataset, recipe.classifier.batch_size, _failed(cached, features), tell=tell))


def check_trainable(
    dataset: Path, batch_size: int, without: Collection[str] = (), *, tell: bool = False
) -> list[int]:
    """Rows of ``dataset`` whose image labels are known. Raises UserError if they are fewer than one batch.

    Args:
        without: ids of images to leave out.
        tell: log how many images are left out or are negatives, and warn of classes that can't be learned.
    """
    reader = ShardReader(dataset)
    labels = known_labels(reader)
    rows = [row for row in labels if reader.image_ids[row] not in without]
    if tell:
        log_left_out(len(reader) - len(labels))
        log_negatives(labels.values())
    if len(rows) < batch_size:
        raise UserError(
            f"{dataset} has {len(rows)} images with known labels; expected at least one batch of "
            f"{batch_size} (classifier.batch_size)"
        )
    if tell:
        warn_of_unlearnable(labels.values(), DatasetMetadata.load(dataset).class_names)
    return rows
