"""SAM's masks in the tiles of an image: kept packed, carried on into the next tile, merged by class."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected_components

from ray_wsss.ops.regions import inmost
from ray_wsss.ops.tiles import TileGrid, common_part, inner_edge

_AGREEMENT = 0.5
"""Least IoU, where both tiles see it, of a mask and its continuation in the next tile. Below it, SAM has
found something else there."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TilePrompt:
    """Point prompts for one class in one tile; they give one mask."""

    tile: int
    """Index in the grid."""
    class_at: int
    """Index among the image's classes."""
    points_yx: NDArray[np.int64]
    """(P, 2), in pixels of the tile."""
    known: Mask | None = None
    """(h, w), what lies in this tile of the masks that the prompt carries on; None if it carries on none."""
    seen: Mask | None = None
    """(h, w), the part of this tile that the tiles of those masks also see; None without ``known``."""

    def agrees(self, mask: Mask) -> bool:
        """Whether a mask in this tile continues what is known; always, if nothing is."""
        if self.known is None or self.seen is None:
            return True
        common, either = (mask & self.known).sum(), ((mask & self.seen) | self.known).sum()
        return bool(common >= _AGREEMENT * either)


@dataclass(frozen=True, eq=False)
class TileMask:
    """SAM's mask for a prompt, as bits."""

    prompt: TilePrompt
    bits: NDArray[np.uint8]
    """The mask (h, w), packed by `numpy.packbits`."""
    area: int
    """Pixels of the mask."""
    scores: tuple[float, float, float]
    """SAM's predicted IoU, stability score, mean CAM over the mask."""

    @classmethod
    def pack(cls, prompt: TilePrompt, mask: Mask, scores: tuple[float, float, float]) -> "TileMask":
        """The packed form of a mask (h, w)."""
        return cls(prompt, np.packbits(mask), int(mask.sum()), scores)

    def unpack(self, hw: tuple[int, int]) -> Mask:
        """The mask (h, w)."""
        return np.unpackbits(self.bits, count=hw[0] * hw[1]).view(np.bool_).reshape(hw)


@dataclass(frozen=True, eq=False)
class TileMasks:
    """All masks of an image so far."""

    grid: TileGrid
    found: dict[tuple[int, int], list[TileMask]] = field(default_factory=lambda: defaultdict(list))
    """Masks by tile and class."""

    def add(self, masks: Sequence[TileMask]) -> None:
        """Add masks."""
        for mask in masks:
            self.found[mask.prompt.tile, mask.prompt.class_at].append(mask)

    def of_class(self, class_at: int) -> list[TileMask]:
        """All masks of a class, by tile."""
        return [mask for (_, at), masks in sorted(self.found.items()) if at == class_at for mask in masks]

    def merge(self, class_at: int) -> Mask:
        """Union (H, W) of the masks of a class in all tiles."""
        merged = np.zeros(self.grid.image_hw, bool)
        for mask in self.of_class(class_at):
            tile = self.grid[mask.prompt.tile]
            merged[tile.at] |= mask.unpack(tile.hw)
        return merged

    def scores(self, class_at: int) -> tuple[float, float, float]:
        """Scores of a class's masks, as `TileMask` has them, averaged by area; 0 without masks."""
        masks = self.of_class(class_at)
        weights = np.array([mask.area for mask in masks], float)
        if not weights.sum():
            weights[:] = 1
        total = weights @ np.array([mask.scores for mask in masks]).reshape(-1, 3)
        return tuple((total / max(1.0, weights.sum())).tolist())

    def carry_on(self, masks: Sequence[TileMask]) -> list[TilePrompt]:
        """Prompts for the parts of objects that lie beyond the tiles of ``masks``.

        Where a mask reaches the edge of its tile, the object goes on in the tile whose core holds that edge.
        There SAM is prompted at the inmost point of what is known of the object, unless a mask of the class
        covers that point already.
        """
        points: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        known: dict[tuple[int, int], Mask] = {}
        seen: dict[tuple[int, int], Mask] = {}
        for mask in masks:
            tile = self.grid[mask.prompt.tile]
            inside = mask.unpack(tile.hw)
            for next_at, edge in self._reached(mask.prompt.tile, inside).items():
                key, next_tile = (next_at, mask.prompt.class_at), self.grid[next_at]
                here, there = common_part(tile, next_tile)
                for part in _parts_at(
                    inside[here], edge - (tile.y.start + here[0].start, tile.x.start + here[1].start)
                ):
                    y, x = inmost(part)
                    point = there[0].start + y, there[1].start + x
                    if self._covers(key, point):
                        continue
                    points[key].append(point)
                    known.setdefault(key, np.zeros(next_tile.hw, bool))[there] |= part
                    seen.setdefault(key, np.zeros(next_tile.hw, bool))[there] = True
        return [
            TilePrompt(*key, np.unique(np.array(points[key]), axis=0), known[key], seen[key])
            for key in sorted(points)
        ]

    def _reached(self, at: int, inside: Mask) -> dict[int, NDArray[np.int64]]:
        """Pixels (K, 2) of the image where a tile's mask reaches its inner edge, by the tile that owns them.

        Where no other tile owns them, the object can't be carried on.
        """
        reached: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for y, x in inner_edge(inside, self.grid[at], self.grid.image_hw):
            reached[self.grid.owner(y, x)].append((y, x))
        return {owner: np.array(pixels) for owner, pixels in sorted(reached.items()) if owner != at}

    def _covers(self, key: tuple[int, int], point_yx: tuple[int, int]) -> bool:
        hw = self.grid[key[0]].hw
        return any(mask.unpack(hw)[point_yx] for mask in self.found.get(key, ()))


def _parts_at(inside: Mask, pixels_yx: NDArray[np.int64]) -> Iterator[Mask]:
    """Connected parts of a mask that hold one of the pixels (K, 2), each as a mask."""
    labels = np.asarray(connected_components(inside))
    for k in np.unique(labels[tuple(pixels_yx.T)]):
        yield labels == k
