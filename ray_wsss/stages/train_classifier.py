"""Train the classifier: classification loss, and SAM's masks as supervision of the CAM (CPM)."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ray_wsss.config import Recipe
from ray_wsss.data.loader import TrainingCrops
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier, ClassifierSpec, build_classifier
from ray_wsss.models.sam.build import build_sam
from ray_wsss.ops.cam import make_cam
from ray_wsss.ops.contrast import ssc_loss
from ray_wsss.ops.losses import IGNORE_LABEL, StepLosses, classification_loss, cpm_loss
from ray_wsss.stages.cpm import Cpm
from ray_wsss.stages.training import Batch, Session, run_training, share_of_batch


class ClassifierStep:
    """Losses of one iteration: cls, SSC where there are segment maps, CPM after its warm-up.

    SSC and CPM are means over pixels, and workers have different numbers of them: each weighs its own by its
    share, so that the mean of the workers' gradients is the gradient of the whole batch's mean.
    """

    def __init__(
        self, recipe: Recipe, cpm: Cpm | None, mean_over_workers: Callable[[Tensor], Tensor]
    ) -> None:
        self.warmup_iters = recipe.cpm.warmup_iters
        self.temperature = recipe.cpm.temperature
        self.ssc_temperature = recipe.classifier.ssc_temperature
        self.weights = asdict(recipe.classifier.loss_weights)
        self.cpm, self.mean_over_workers = cpm, mean_over_workers

    def __call__(self, model: nn.Module, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, image_labels = batch["image"], batch["image_labels"]
        output = model(images)
        losses = StepLosses(
            cls=classification_loss(output.logits, image_labels),
            ssc=self._ssc_loss(batch, output.features) if "segments" in batch else None,
            cpm=self._cpm_loss(model, batch, output.class_maps) if self._on(iteration) else None,
        )
        losses.raise_if_not_finite(batch["image_id"])
        return losses.total(self.weights), losses.parts()

    def _on(self, iteration: int) -> bool:
        return self.cpm is not None and iteration >= self.warmup_iters

    def _ssc_loss(self, batch: Batch, features: Tensor) -> Tensor:
        segments, bounds = batch["segments"], batch["plan"].segment_bounds if "plan" in batch else None
        return self._share(segments > 0) * ssc_loss(features, segments, self.ssc_temperature, bounds)

    def _cpm_loss(self, model: nn.Module, batch: Batch, class_maps: Tensor) -> Tensor:
        assert self.cpm is not None
        images, image_labels = batch["image"], batch["image_labels"]
        bare = cast(Classifier, getattr(model, "module", model))  # outside DDP: this pass has no gradient
        pseudo_label = self.cpm(bare, batch)
        pseudo_label = pseudo_label.masked_fill(~batch["inside"], IGNORE_LABEL)
        cam = make_cam(class_maps, image_labels, (images.shape[-2], images.shape[-1]))
        return self._share(batch["inside"]) * cpm_loss(cam, pseudo_label, self.temperature)

    def _share(self, counted: Tensor) -> Tensor:
        """How many pixels count here, relative to the mean over the workers; 1 where there is one worker."""
        count = counted.sum().float()
        return count / self.mean_over_workers(count).clamp(min=1)


def train_classifier(
    recipe: Recipe,
    dataset: Path,
    session: Session,
    *,
    segments: Path | None = None,
    embeddings: Path | None = None,
) -> None:
    """Train on the image labels of ``dataset``, one worker's part.

    Images without labels are left out: whether their classes are absent or unknown is unknown.

    Args:
        segments: output of segment-everything; SSC is on where it is given.
        embeddings: output of embed, for ``cpm.view=image``.

    Raises:
        UserError: too few images, or settings that don't fit together.
    """
    metadata = DatasetMetadata.load(dataset)
    config = recipe.classifier
    rows = check_trainable(dataset, config.batch_size)
    share_of_batch(config, session.world_size, "classifier")
    with_cpm = recipe.cpm.enabled and recipe.cpm.warmup_iters < config.max_iters
    crops = TrainingCrops(
        dataset,
        rows,
        num_classes=len(metadata.class_names),
        augment=config.augment,
        seed=config.seed,
        segments=segments,
        embeddings=embeddings if with_cpm and recipe.cpm.view == "image" else None,
    )
    spec = ClassifierSpec.of(config, metadata.class_names)
    torch.manual_seed(config.seed)
    model = build_classifier(spec, pretrained=config.pretrained, checkpoint=config.backbone_checkpoint)
    model.backbone.freeze(config.freeze_stages, config.freeze_norm)
    cpm = None
    if with_cpm:
        cpm = Cpm(build_sam(recipe.sam).to(session.device), recipe.cpm, recipe.sam.decode_batch_size)
    run_training(
        model=model,
        spec=spec,
        config=config,
        crops=crops,
        step=ClassifierStep(recipe, cpm, session.mean_over_workers),
        session=session,
        name="classifier",
    )


def check_trainable(dataset: Path, batch_size: int) -> list[int]:
    """Rows with image labels. Raises UserError where they are fewer than a batch, or of no class."""
    reader = ShardReader(dataset)
    rows = [row for row in range(len(reader)) if reader.read(row, ["image_labels"])["image_labels"]]
    if len(rows) < batch_size:
        raise UserError(
            f"{dataset} has {len(rows)} images with labels; expected at least one batch of {batch_size} "
            f"(classifier.batch_size)"
        )
    return rows
