"""CAMs of an image that a classifier sees in tiles, and the peaks in them that prompt SAM.

A class that an image has is in few of its tiles. The CAMs of all tiles are stitched before they are
normalised, so that the strongest activation in the image sets the scale, and tiles without the class stay
dark. Normalised tile by tile, each would have a peak.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import LabelConfig
from ray_wsss.models.classifier import Classifier
from ray_wsss.ops.cam import normalise_cam
from ray_wsss.ops.peaks import find_peaks
from ray_wsss.ops.resize import group_by_size, resize_maps, scale_images, slices_of, to_tensor
from ray_wsss.ops.tiles import (
    CELL_PX,
    StitchedMaps,
    TileGrid,
    around_core,
    cells_hw,
    enlarge_part,
    fill_cells,
)
from ray_wsss.stages.cams import class_maps_of, scale_for_classifier


@dataclass(frozen=True, eq=False)
class TiledCams:
    """CAMs of one image, one for each class that it has, in cells of `ops.tiles.CELL_PX` pixels."""

    cam: Float[Tensor, "N _h _w"]
    """CAM of each class, in [0, 1]; its maximum over the image is 1."""
    ranking: Float[Tensor, "N _h _w"]
    """The CAMs, with one that is zero everywhere replaced by its class map before ReLU."""
    class_index: Sequence[int]
    """(N,) index of each class, ascending."""
    image_hw: tuple[int, int]

    def part(self, classes: Sequence[int], rows: slice, columns: slice) -> Float[Tensor, "n H W"]:
        """CAMs of some of the N classes in a part of the image, at the image's own size."""
        return enlarge_part(self.cam[list(classes)], self.image_hw, rows, columns)

    def highest(self) -> NDArray[np.float32]:
        """Highest CAM (H, W) over the classes, at the image's own size."""
        whole = enlarge_part(self.cam.amax(0)[None], self.image_hw, slice(None), slice(None))
        return whole[0].cpu().numpy()


def grid_of(image_hw: tuple[int, int], config: LabelConfig) -> TileGrid:
    """The tiles of an image, as ``config`` sets them."""
    assert config.tile_px is not None
    return TileGrid(image_hw, config.tile_px, config.tile_overlap_px)


@torch.no_grad()
def tiled_cams(
    model: Classifier, pixels: NDArray[np.uint8], image_labels: Sequence[int], config: LabelConfig
) -> TiledCams:
    """Multi-scale CAMs of an image (H, W, 3), on the model's device; the classifier sees it in tiles."""
    grid, classes = grid_of((pixels.shape[0], pixels.shape[1]), config), sorted(set(image_labels))
    activations, raw = (StitchedMaps(len(classes), grid, model.device) for _ in range(2))
    parts = [fill_cells(pixels[tile.at]) for tile in grid]
    for members in group_by_size(parts, config.cam_batch_size, config.max_batch_pixels):
        size_hw = (parts[members[0]].shape[0], parts[members[0]].shape[1])
        shrink = scale_for_classifier(size_hw, config)
        present = torch.zeros(len(members), model.num_classes)
        present[:, classes] = 1
        _, maps = class_maps_of(
            model,
            to_tensor([parts[at] for at in members], model.device),
            present,
            scales=[scale * shrink for scale in config.scales],
            flip=config.flip,
            refine=config,
        )
        active, signed = (
            _sum_in_cells(of_views, size_hw).view(len(members), len(classes), *cells_hw(size_hw))
            for of_views in ([view.relu() for view in maps], maps)
        )
        for k, at in enumerate(members):
            activations.add(grid[at], active[k])
            raw.add(grid[at], signed[k])
    cam = normalise_cam(activations.mean()[None], torch.ones(1, len(classes), device=model.device))[0]
    dead = cam.flatten(1).amax(1) == 0
    ranking = torch.where(dead[:, None, None], raw.mean(), cam)
    return TiledCams(cam, ranking, classes, grid.image_hw)


def _sum_in_cells(maps: Sequence[Tensor], size_hw: tuple[int, int]) -> Tensor:
    """Sum of maps (M, 1, h, w) of several views, in the cells of tiles of one size: (M, h, w)."""
    total = resize_maps(maps[0], cells_hw(size_hw))
    for of_view in maps[1:]:
        total = total + resize_maps(of_view, cells_hw(size_hw))
    return total[:, 0]


@torch.no_grad()
def tiled_probabilities(model: Classifier, pixels: NDArray[np.uint8], config: LabelConfig) -> list[float]:
    """Probability of each class that the classifier knows, in [0, 1]: the highest of an image's tiles."""
    parts = [pixels[tile.at] for tile in grid_of((pixels.shape[0], pixels.shape[1]), config)]
    highest = torch.zeros(model.num_classes, device=model.device)
    for members in group_by_size(parts, config.cam_batch_size, config.max_batch_pixels):
        seen = to_tensor([parts[at] for at in members], model.device)
        scale = scale_for_classifier((seen.shape[2], seen.shape[3]), config)
        logits = model(scale_images(seen, scale) if scale < 1 else seen).logits
        highest = torch.maximum(highest, logits.sigmoid().amax(0))
    return highest.tolist()


def find_tile_peaks(
    cams: TiledCams, grid: TileGrid, config: LabelConfig
) -> list[tuple[int, int, NDArray[np.int64]]]:
    """Points that prompt SAM: (tile, class, points (P, 2)) for each class of each tile that has some.

    Each peak of the image's CAM belongs to the tile in whose core it lies. The class counts from 0 to N - 1;
    points are (y, x) in pixels of the image, row-major. A class without peaks in the whole image is prompted
    at its global maximum, as ``config.keep_global_max`` says.

    The peaks are those of `ops.peaks.find_peaks` in the whole image, except that equal maxima close to each
    other on two sides of a seam both stay.
    """
    found: dict[tuple[int, int], NDArray[np.int64]] = {}
    for at in range(len(grid)):
        for n, points in _peaks_in_core(cams, grid, at, config):
            found[at, n] = points
    for n, point in enumerate(_global_maxima(cams)):
        has_peaks = any(of == n for _, of in found)
        if config.keep_global_max == "never" or (has_peaks and config.keep_global_max == "if_empty"):
            continue
        key = grid.owner(*point), n
        points = np.concatenate([found.get(key, np.zeros((0, 2), np.int64)), [point]])
        found[key] = np.unique(points, axis=0)
    return [(at, n, points) for (at, n), points in sorted(found.items(), key=lambda entry: entry[0])]


def _peaks_in_core(
    cams: TiledCams, grid: TileGrid, at: int, config: LabelConfig
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Class and peaks, in pixels of the image, of each class that has peaks in the core of a tile."""
    tile, d = grid[at], config.min_distance_px
    # With d pixels around the core, the search sees all that a search of the whole image would see.
    rows = around_core(tile.y, d, grid.image_hw[0])
    columns = around_core(tile.x, d, grid.image_hw[1])
    in_cells = cams.cam[
        :,
        rows.start // CELL_PX : rows.stop // CELL_PX + 2,
        columns.start // CELL_PX : columns.stop // CELL_PX + 2,
    ]
    bright = (in_cells.flatten(1).amax(1) > config.tau).nonzero()[:, 0].tolist()
    of_class = (rows.stop - rows.start) * (columns.stop - columns.start)
    for part in slices_of(len(bright), of_class, config.max_map_pixels):
        maps = cams.part(bright[part], rows, columns)
        peaks = find_peaks(maps, tau=config.tau, min_distance_px=d).nonzero().cpu().numpy()
        for k, n in enumerate(bright[part]):
            points = peaks[peaks[:, 0] == k, 1:]
            if len(points):
                yield n, points + np.array([rows.start, columns.start])


def _global_maxima(cams: TiledCams) -> Iterator[tuple[int, int]]:
    """Pixel (y, x) of each class's maximum in the image."""
    width = cams.ranking.shape[2]
    for ranking, cell in zip(cams.ranking, cams.ranking.flatten(1).argmax(1).tolist()):
        # Enlarged, the maximum is a pixel in this cell or at its edge.
        rows, columns = (
            slice(max(0, CELL_PX * (c - 1)), min(length, CELL_PX * (c + 2)))
            for c, length in zip(divmod(cell, width), cams.image_hw)
        )
        near = enlarge_part(ranking[None], cams.image_hw, rows, columns)[0]
        y, x = divmod(int(near.argmax()), near.shape[1])
        yield rows.start + y, columns.start + x
