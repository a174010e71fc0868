"""Train the classifier: classification loss, and SAM's masks as supervision of the CAM (CPM)."""

from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.config import CpmConfig, Recipe
from ray_wsss.data.loader import TrainingCrops
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier, ClassifierSpec, build_classifier
from ray_wsss.models.sam.build import build_sam
from ray_wsss.ops.cam import make_cam
from ray_wsss.ops.losses import IGNORE_LABEL, StepLosses, classification_loss, cpm_loss
from ray_wsss.stages.prompting import aggregate, decode_pairs, find_cams, find_prompts
from ray_wsss.stages.training import Batch, Session, run_training, share_of_batch


class Cpm:
    """CAM-based Prompting Module: the pseudo labels of a batch of crops.

    SAM encodes the crop itself, as published (the design's ``cpm.view=crop``).
    """

    def __init__(self, sam: Sam, config: CpmConfig, decode_batch_size: int) -> None:
        self.sam, self.config, self.decode_batch_size = sam, config, decode_batch_size

    @torch.no_grad()
    def __call__(self, model: Classifier, images: Tensor, image_labels: Tensor) -> Tensor:
        """(B, P, P) uint8 pseudo labels of crops (B, 3, P, P) RGB in [0, 1]."""
        cams = find_cams(model, images, image_labels, scales=self.config.scales, flip=False)
        embeddings = self.sam.image_encoder(self._prepare(images))
        points_yx = find_prompts(cams, self.config, guess=False)
        (masks,) = decode_pairs(
            self.sam, embeddings, [cams], [points_yx], self.config.mask_output, self.decode_batch_size
        )
        return aggregate(self.sam, cams, masks, len(images), self.config)[0]

    def _prepare(self, images: Tensor) -> Tensor:
        """Square crops to SAM's input: resized on the device (antialiased), normalised as SAM's."""
        size = self.sam.image_encoder.img_size
        resized = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return self.sam.preprocess(resized * 255)


class ClassifierStep:
    """Losses of one iteration: cls, and CPM after its warm-up."""

    def __init__(self, recipe: Recipe, cpm: Cpm | None) -> None:
        self.warmup_iters = recipe.cpm.warmup_iters
        self.temperature = recipe.cpm.temperature
        self.weights = asdict(recipe.classifier.loss_weights)
        self.cpm = cpm

    def __call__(self, model: nn.Module, batch: Batch, iteration: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, image_labels = batch["image"], batch["image_labels"]
        output = model(images)
        losses = StepLosses(
            cls=classification_loss(output.logits, image_labels),
            ssc=None,  # SAM-Segment Contrasting needs segment maps, which are not made yet.
            cpm=self._cpm_loss(model, batch, output.class_maps) if self._on(iteration) else None,
        )
        losses.raise_if_not_finite(batch["image_id"])
        return losses.total(self.weights), losses.parts()

    def _on(self, iteration: int) -> bool:
        return self.cpm is not None and iteration >= self.warmup_iters

    def _cpm_loss(self, model: nn.Module, batch: Batch, class_maps: Tensor) -> Tensor:
        assert self.cpm is not None
        images, image_labels = batch["image"], batch["image_labels"]
        bare = cast(Classifier, getattr(model, "module", model))  # outside DDP: this pass has no gradient
        pseudo_label = self.cpm(bare, images, image_labels)
        pseudo_label = pseudo_label.masked_fill(~batch["inside"], IGNORE_LABEL)
        cam = make_cam(class_maps, image_labels, (images.shape[-2], images.shape[-1]))
        return cpm_loss(cam, pseudo_label, self.temperature)


def train_classifier(recipe: Recipe, dataset: Path, session: Session) -> None:
    """Train on the image labels of ``dataset``, one worker's part.

    Images without labels are left out: whether their classes are absent or unknown is unknown.

    Raises:
        UserError: too few images, or settings that don't fit together.
    """
    metadata = DatasetMetadata.load(dataset)
    config = recipe.classifier
    rows = check_trainable(dataset, config.batch_size)
    share_of_batch(config, session.world_size, "classifier")
    crops = TrainingCrops(
        dataset, rows, num_classes=len(metadata.class_names), augment=config.augment, seed=config.seed
    )
    spec = ClassifierSpec.of(config, metadata.class_names)
    torch.manual_seed(config.seed)
    model = build_classifier(spec, pretrained=config.pretrained, checkpoint=config.backbone_checkpoint)
    model.backbone.freeze(config.freeze_stages, config.freeze_norm)
    cpm = None
    if recipe.cpm.enabled and recipe.cpm.warmup_iters < config.max_iters:
        cpm = Cpm(build_sam(recipe.sam).to(session.device), recipe.cpm, recipe.sam.decode_batch_size)
    run_training(
        model=model,
        spec=spec,
        config=config,
        crops=crops,
        step=ClassifierStep(recipe, cpm),
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
