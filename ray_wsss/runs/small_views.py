"""A warning about images that the classifier sees much smaller than they are."""

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ray_wsss.config import LabelConfig
from ray_wsss.config.checks import LEAST_TILE_PX
from ray_wsss.data.reader import open_shard, shard_paths
from ray_wsss.ops.tiles import needs_tiles
from ray_wsss.storage import read_side_by_side

log = logging.getLogger(__name__)

_FAR = 2
"""Images that are shown more than this many times smaller than they are count as shrunk."""
_VISIBLE_PX = 16
"""Side of an object that fills about one cell of a class map."""


@dataclass(kw_only=True)
class SmallViews:
    """Counts of images that the classifier sees at less than half their size."""

    images: int = 0
    """All images."""
    shrunk: int = 0
    """Images that are shown at less than half their size."""
    factor: float = 0.0
    """How many times smaller the smallest of them is shown."""
    example: str = ""
    """Id and size of that image."""

    @classmethod
    def of(cls, image_id: str, image_hw: tuple[int, int], config: LabelConfig) -> "SmallViews":
        """Counts of one image.

        Args:
            config: with the classifier's side settled (`runs.classifier_side.with_classifier_side`).
        """
        factor = _shrink_factor(image_hw, config)
        if factor <= _FAR:
            return cls(images=1)
        example = f"{image_id} ({image_hw[1]}x{image_hw[0]} px)"
        return cls(images=1, shrunk=1, factor=factor, example=example)

    def add(self, other: "SmallViews") -> None:
        """Add the counts of other images."""
        self.images += other.images
        self.shrunk += other.shrunk
        if other.factor > self.factor:
            self.factor, self.example = other.factor, other.example

    def describe(self, config: LabelConfig) -> str:
        """The warning, for images of which some are shrunk."""
        side_px = round(_VISIBLE_PX * self.factor)
        worst = f"{self.example} at 1/{self.factor:.3g}"
        if self.images == 1:
            shown = f"the classifier sees {worst} of its size"
        else:
            counted = f"{self.shrunk:,} of {self.images:,} images are shown to the classifier"
            shown = f"{counted} at less than half their size, {worst}"
        shown += f": objects under {side_px} px have less than {_VISIBLE_PX} px there, and may be lost"
        if config.tile_px is not None:
            return f"{shown}; smaller tiles (label.tile_px) are shrunk less"
        side = min(config.classifier_side_px or math.inf, config.max_side_px) // 4 * 4
        if side < LEAST_TILE_PX:
            return shown
        return f"{shown}; --label.tile-px {side:.0f} labels them in tiles of which none is shrunk"


def _shrink_factor(image_hw: tuple[int, int], config: LabelConfig) -> float:
    """How many times smaller than it is the classifier sees an image, or its tiles; at least 1."""
    most = config.classifier_side_px or math.inf
    if needs_tiles(image_hw, config.tile_px):
        return max(1.0, (config.tile_px or 0) / most)
    return max(1.0, max(image_hw) / min(config.max_side_px, most))


def warn_of_small_views(config: LabelConfig, dataset: Path) -> None:
    """Log one warning if the classifier sees images of ``dataset`` at less than half their size.

    Args:
        config: with the classifier's side settled (`runs.classifier_side.with_classifier_side`).
    """
    views = SmallViews()
    for of_shard in read_side_by_side(partial(_count, config=config), shard_paths(dataset)):
        views.add(of_shard)
    if views.shrunk:
        log.warning(views.describe(config))


def _count(shard: Path, config: LabelConfig) -> SmallViews:
    with open_shard(shard) as file:
        if not {"height", "width"} <= set(file.schema_arrow.names):
            return SmallViews(images=file.metadata.num_rows)
        rows = file.read(columns=["image_id", "height", "width"], use_threads=False).to_pylist()
    views = SmallViews()
    for row in rows:
        views.add(SmallViews.of(row["image_id"], (row["height"], row["width"]), config))
    return views
