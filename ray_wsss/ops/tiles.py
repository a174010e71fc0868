"""Overlapping tiles of a large image, and maps of the whole image put together from those of its tiles."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

CELL_PX = 4
"""Pixels per cell of a stitched map, in both directions. Class maps have one value per 4 pixels or fewer."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis: pixels ``start`` to ``stop`` (excluded) of the image."""

    start: int
    stop: int
    core_start: int
    """First pixel that lies deeper in this tile than in any other: cores divide the axis without overlap."""
    core_stop: int


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image."""

    y: Span
    x: Span

    @property
    def at(self) -> tuple[slice, slice]:
        """The tile's pixels, as an index into an image (H, W, ...)."""
        return slice(self.y.start, self.y.stop), slice(self.x.start, self.x.stop)

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.y.stop - self.y.start, self.x.stop - self.x.start


def needs_tiles(image_hw: tuple[int, int], tile_px: int | None) -> bool:
    """Whether an image is larger than a tile; never without ``tile_px``."""
    return tile_px is not None and max(image_hw) > tile_px


class TileGrid:
    """Tiles that cover an image, in row-major order.

    Neighbours overlap by ``overlap_px`` or a few pixels more; the last tile of a row or column ends at the
    image's edge and overlaps more. All tiles start at multiples of `CELL_PX`.

    Args:
        image_hw: height and width of the image in pixels.
        tile_px: side of a tile, a multiple of `CELL_PX`. A shorter side of the image is not cut.
        overlap_px: at most half of ``tile_px``.
    """

    def __init__(self, image_hw: tuple[int, int], tile_px: int, overlap_px: int) -> None:
        self.image_hw, self.overlap_px = image_hw, overlap_px
        self.ys, self.xs = (cut_axis(length, tile_px, overlap_px) for length in image_hw)

    def __len__(self) -> int:
        return len(self.ys) * len(self.xs)

    def __getitem__(self, index: int) -> Tile:
        return Tile(self.ys[index // len(self.xs)], self.xs[index % len(self.xs)])

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def owner(self, y: int, x: int) -> int:
        """Index of the tile whose core holds a pixel of the image."""
        row, column = (
            bisect_right([span.core_start for span in spans], at) - 1
            for spans, at in ((self.ys, y), (self.xs, x))
        )
        return row * len(self.xs) + column


def cut_axis(length: int, tile_px: int, overlap_px: int) -> list[Span]:
    """Spans that cover an axis of ``length`` pixels, as `TileGrid` describes."""
    step = (tile_px - overlap_px) // CELL_PX * CELL_PX
    starts = list(range(0, max(1, length - tile_px), step))
    if length > tile_px:
        starts.append(-(-(length - tile_px) // CELL_PX) * CELL_PX)
    stops = [min(start + tile_px, length) for start in starts]
    bounds = [0, *((start + stop) // 2 for start, stop in zip(starts[1:], stops)), length]
    return [Span(*edges) for edges in zip(starts, stops, bounds, bounds[1:])]


def cells_hw(image_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a stitched map of an image, in cells."""
    return -(-image_hw[0] // CELL_PX), -(-image_hw[1] // CELL_PX)


def fill_cells(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (H, W, 3) enlarged to whole cells, by repeating its last row and column."""
    height, width = pixels.shape[:2]
    missing = (-height % CELL_PX, -width % CELL_PX)
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels


class StitchedMaps:
    """Maps of a whole image, in cells of `CELL_PX`: the mean of its tiles' maps where tiles overlap.

    In the mean a tile counts more the farther a cell is from its edge, since a network sees less of the
    surroundings there.

    Args:
        count: number of maps, N.
    """

    def __init__(self, count: int, grid: TileGrid, device: torch.device) -> None:
        self.grid = grid
        self._sum = torch.zeros(count, *cells_hw(grid.image_hw), device=device)
        self._weight = torch.zeros(cells_hw(grid.image_hw), device=device)

    def add(self, tile: Tile, maps: Float[Tensor, "N h w"]) -> None:
        """Add a tile's maps; they have the tile's size in cells."""
        height, width = self.grid.image_hw
        ramp = max(1, self.grid.overlap_px // CELL_PX)
        weight = _depth(tile.y, height, ramp)[:, None] * _depth(tile.x, width, ramp)
        weight = weight.to(maps.device)
        at = _cells(tile.y), _cells(tile.x)
        self._sum[:, *at] += weight * maps
        self._weight[at] += weight

    def mean(self) -> Float[Tensor, "N H W"]:
        """The stitched maps, after every tile was added once."""
        return self._sum / self._weight


def _cells(span: Span) -> slice:
    return slice(span.start // CELL_PX, -(-span.stop // CELL_PX))


def _depth(span: Span, length: int, most: int) -> Float[Tensor, " n"]:
    """Distance of each cell from the tile's edge, 1 to ``most``; the edge of the image is none."""
    cells = _cells(span)
    at = torch.arange(cells.stop - cells.start, dtype=torch.float32)
    depth = torch.full_like(at, most)
    if span.start > 0:
        depth = torch.minimum(depth, at + 1)
    if span.stop < length:
        depth = torch.minimum(depth, len(at) - at)
    return depth


def enlarge_part(
    maps: Float[Tensor, "N _h _w"], image_hw: tuple[int, int], rows: slice, columns: slice
) -> Float[Tensor, "N H W"]:
    """Part of stitched maps at the image's own size, bilinearly: ``rows`` and ``columns`` are in pixels.

    It equals that part of the whole map enlarged, bit for bit, which `F.interpolate` doesn't promise: else
    two tiles could disagree on which of two nearly equal pixels is the peak, and both lose it.
    """
    for dim, part in ((1, rows), (2, columns)):
        start, stop, _ = part.indices(image_hw[dim - 1])
        # The formula of bilinear interpolation with corners not aligned; all its numbers are exact.
        at = (torch.arange(start, stop, device=maps.device) + 0.5) / CELL_PX - 0.5
        low = at.clamp_(0, maps.shape[dim] - 1).floor().long()
        high = (low + 1).clamp_(max=maps.shape[dim] - 1)
        share = (at - low).unsqueeze(-1) if dim == 1 else at - low
        maps = maps.index_select(dim, low) * (1 - share) + maps.index_select(dim, high) * share
    return maps


def around_core(span: Span, margin_px: int, length: int) -> slice:
    """Pixels of a tile's core and of ``margin_px`` around it, inside the image."""
    return slice(max(0, span.core_start - margin_px), min(length, span.core_stop + margin_px))


def inner_edge(mask: NDArray[np.bool_], tile: Tile, image_hw: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Pixels (y, x) of the image where a tile's mask (h, w) reaches an edge of the tile inside the image."""
    edge = np.zeros_like(mask)
    edge[0] |= tile.y.start > 0
    edge[-1] |= tile.y.stop < image_hw[0]
    edge[:, 0] |= tile.x.start > 0
    edge[:, -1] |= tile.x.stop < image_hw[1]
    for y, x in np.argwhere(mask & edge):
        yield tile.y.start + int(y), tile.x.start + int(x)


def common_part(tile: Tile, other: Tile) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The rectangle that two tiles share, as an index into the first and into the other."""
    shared = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in ((tile.y, other.y), (tile.x, other.x))]
    (top, bottom), (left, right) = shared
    return (
        (slice(top - tile.y.start, bottom - tile.y.start), slice(left - tile.x.start, right - tile.x.start)),
        (
            slice(top - other.y.start, bottom - other.y.start),
            slice(left - other.x.start, right - other.x.start),
        ),
    )
