"""Label maps of images that the segmenter sees in tiles: scores of all tiles are merged, then compared."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import PredictConfig
from ray_wsss.label_format import LabelMap, label_format
from ray_wsss.ops.resize import group_by_size, slices_of
from ray_wsss.ops.tiles import (
    StitchedMaps,
    Tile,
    TileGrid,
    cells_hw,
    enlarge_part,
    fill_cells,
)
from ray_wsss.stages.segmenter_views import View, sum_up


@torch.no_grad()
def predict_in_tiles(
    views_of: Callable[[Sequence[NDArray[np.uint8]]], list[View]],
    pixels: NDArray[np.uint8],
    num_labels: int,
    config: PredictConfig,
    device: torch.device,
) -> LabelMap:
    """Label map (H, W) of an image (H, W, 3) RGB, at its own size.

    The scores of a label are those of `stages.predict.Predictor` in each tile, averaged where tiles overlap
    (`ops.tiles.StitchedMaps`). A few labels are compared at a time. The logits of all tiles, in the head's
    cells, stay in memory: for 20 classes and 48 megapixels, 63 MB a view.

    Args:
        views_of: the segmenter's logits for a batch of tiles (h, w, 3) of one size, in each view.
    """
    assert config.tile_px is not None
    image_hw = (pixels.shape[0], pixels.shape[1])
    grid = TileGrid(image_hw, config.tile_px, config.tile_overlap_px)
    tiles = list(_views_of_tiles(views_of, pixels, grid, config, num_labels))
    best = np.full(image_hw, -np.inf, np.float32)
    label = np.zeros(image_hw, label_format(num_labels - 1).dtype)
    height, width = cells_hw(image_hw)
    for part in slices_of(num_labels, height * width, config.max_scores):
        maps = StitchedMaps(part.stop - part.start, grid, device)
        for tile, views in tiles:
            maps.add(tile, _scores(views, part, num_labels, cells_hw(tile.hw), config))
        scores = maps.mean()
        for rows in slices_of(image_hw[0], width * len(scores) * 16, config.max_scores):
            score, highest = enlarge_part(scores, image_hw, rows, slice(None)).max(0)
            score, found = score.cpu().numpy(), highest.cpu().numpy() + part.start
            better = score > best[rows]  # of equal scores, the lower label wins
            label[rows][better], best[rows][better] = found[better], score[better]
    return label


def _views_of_tiles(
    views_of: Callable[[Sequence[NDArray[np.uint8]]], list[View]],
    pixels: NDArray[np.uint8],
    grid: TileGrid,
    config: PredictConfig,
    num_labels: int,
) -> Iterator[tuple[Tile, list[View]]]:
    """Each tile with its views; tiles of one size go through the segmenter in batches."""
    parts = [pixels[tile.at] for tile in grid]
    for members in group_by_size(parts, config.batch_size, config.max_batch_pixels(num_labels)):
        views = views_of([fill_cells(parts[at]) for at in members])
        for k, at in enumerate(members):
            yield grid[at], [view.of_image(k) for view in views]


def _scores(
    views: Sequence[View], labels: slice, num_labels: int, size_hw: tuple[int, int], config: PredictConfig
) -> Tensor:
    """Scores (k, h, w) of some labels in a tile."""
    parts = slices_of(num_labels, size_hw[0] * size_hw[1], config.max_scores)
    denominators = [view.denominator(size_hw, parts) for view in views] if len(views) > 1 else []
    return sum_up(views, denominators, labels, size_hw)[0]
