"""Feature maps of the images of a chunk, by the backbone of a classifier that is not trained."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ray_wsss.config import ClassifierConfig, FeaturesConfig
from ray_wsss.data.embeddings import EMBEDDING_SCHEMA, store_embeddings
from ray_wsss.models.first_weights import begin_classifier
from ray_wsss.ops.resize import group_by_size, scale_images, to_tensor
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.embed import describe_embedding

_GROUP_BYTES = 2**19
"""Bytes of a row group, at least one image: training reads single ones at random."""
_IMAGES_PER_PASS, _PIXELS_PER_PASS = 16, 4e6


class FeatureExtractor:
    """Computes the feature maps of the images of a chunk on one device, in float32.

    An image that fails gets a row with the reason in ``error``.

    Args:
        config: which maps, with sides.
        classifier: settings of the classifier, of which the backbone's count.
        class_names: classes of the data set.
    """

    def __init__(
        self,
        config: FeaturesConfig,
        classifier: ClassifierConfig,
        class_names: tuple[str, ...],
        device: str = "cpu",
    ) -> None:
        self.config, self.sides_px, self.device = config, config.sides_px, torch.device(device)
        self.backbone = begin_classifier(classifier, class_names)[0].backbone.eval().to(self.device)
        cells = sum((side // classifier.output_stride) ** 2 for side in self.sides_px)
        values = self.backbone.out_channels * cells * (2 if config.flip else 1)
        self.rows_per_group = max(1, _GROUP_BYTES // max(1, 2 * values))

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Extract features: rows of `EMBEDDING_SCHEMA`, in order, and counts and times."""
        tally = Tally()
        rows: list[dict[str, Any]] = [{"image_id": image.image_id, "error": image.error} for image in images]
        good = [at for at, image in enumerate(images) if image.error is None]
        pixels = [image.pixels for at in good if (image := images[at]).pixels is not None]
        for group in group_by_size(pixels, _IMAGES_PER_PASS, _PIXELS_PER_PASS):
            with tally.phase("backbone", self.device):
                maps = self.maps_of(to_tensor([pixels[k] for k in group], self.device))
                stored = store_embeddings(maps, self.config.dtype, "the feature map")
            with tally.phase("write"):
                for at, of_image in zip((good[k] for k in group), stored):
                    rows[at] |= describe_embedding(images[at], of_image)
        tally.errors = sum(row["error"] is not None for row in rows)
        tally.images = len(rows) - tally.errors
        return pa.Table.from_pylist(rows, schema=EMBEDDING_SCHEMA), tally

    @torch.no_grad()
    def maps_of(self, images: Tensor) -> list[Tensor]:
        """Maps of images (B, 3, H, W): one for each side, and one for each mirrored."""
        maps: list[Tensor] = []
        for side in self.sides_px:
            scaled = scale_images(images, side / max(images.shape[2:]), self.backbone.multiple)
            maps.append(self.backbone(scaled))
            if self.config.flip:
                maps.append(self.backbone(scaled.flip(-1)))
        return maps
