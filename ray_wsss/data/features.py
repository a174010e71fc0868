"""Feature maps of a frozen backbone on disk, by image id, and the crops that training cuts from them.

FEATURES/shards/part-000000.parquet  `data.embeddings.EMBEDDING_SCHEMA`: a map for each side, which the map of
the mirrored image follows, where there is one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ray_wsss.data.embeddings import EmbeddingCache, StoredEmbedding
from ray_wsss.ops.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class FeatureViews:
    """The views of an image whose feature maps a folder holds."""

    folder: Path
    """Output of extract-features."""
    sides_px: Sequence[int]
    """Long side of each view, in pixels."""
    flip: bool
    """Whether each view is there mirrored too."""
    stride: int
    """Pixels per cell."""

    def nearest(self, long_side_px: int, flip: bool) -> tuple[int, bool]:
        """Index of the map whose side is nearest to a length, by ratio, and whether it is mirrored."""
        at = min(range(len(self.sides_px)), key=lambda k: abs(math.log(self.sides_px[k] / long_side_px)))
        return (2 * at + flip, flip) if self.flip else (at, False)


class FeatureCrops:
    """Cuts the feature maps of training crops from those of the whole images."""

    def __init__(self, views: FeatureViews) -> None:
        self.views = views
        self.cache = EmbeddingCache(views.folder, "features")

    def read(self, image_id: str) -> tuple[StoredEmbedding, tuple[int, int]]:
        """The maps of an image, and its height and width. Raises ValueError if there are none."""
        stored = self.cache.read(image_id)
        assert stored.image_hw is not None
        return stored, stored.image_hw

    def cut(
        self, stored: StoredEmbedding, geometry: Geometry
    ) -> tuple[Float[Tensor, "D n n"], Bool[Tensor, "n n"]]:
        """The map of a crop, 0 in its padding, and which of its cells are in the image."""
        at, mirrored = self.views.nearest(max(geometry.scaled_hw), geometry.flip)
        side = max(1, round(geometry.crop_px / self.views.stride))
        return (geometry.mirrored() if mirrored else geometry).crop_cells(_map_of(stored, at), side)


def _map_of(stored: StoredEmbedding, at: int) -> Float[Tensor, "D h w"]:
    """One of the stored maps, as float32."""
    shape, before = stored.shapes[at], stored.shapes[:at]
    start, channel = sum(map(math.prod, before)), sum(depth for depth, *_ in before)
    values: Any = stored.values[start : start + math.prod(shape)].reshape(shape).astype(np.float32)
    if stored.scale is not None:
        values *= stored.scale[channel : channel + shape[0], None, None]
    return torch.from_numpy(values)
