"""Tiles of an image, and maps stitched of theirs, against plain loops and against whole maps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ray_wsss.ops.tiles import (
    CELL_PX,
    StitchedMaps,
    TileGrid,
    cells_hw,
    common_part,
    cut_axis,
    enlarge_part,
    fill_cells,
    inner_edge,
    needs_tiles,
)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    tile = 4 * draw(st.integers(16, 64))
    return draw(st.integers(1, 1500)), tile, draw(st.integers(8, tile // 2))


@given(axes())
def test_spans_cover_an_axis(axis: tuple[int, int, int]) -> None:
    length, tile_px, overlap_px = axis
    spans = cut_axis(*axis)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert all(span.start % CELL_PX == 0 and span.stop - span.start <= tile_px for span in spans)
    assert all(one.stop - other.start >= overlap_px for one, other in pairwise(spans))
    assert all(span.stop - span.start > tile_px - CELL_PX for span in spans if length > tile_px)
    # Cores divide the axis, and each pixel's core is that of the tile in which it lies deepest.
    assert [k for span in spans for k in range(span.core_start, span.core_stop)] == list(range(length))
    for span in spans:
        for at in (span.core_start, span.core_stop - 1):
            depths = [
                min(at - s.start if s.start else length, s.stop - 1 - at if s.stop < length else length)
                for s in spans
                if s.start <= at < s.stop
            ]
            own = min(
                at - span.start if span.start else length,
                span.stop - 1 - at if span.stop < length else length,
            )
            assert own >= max(depths) - 1  # the middle of an odd overlap


def test_an_image_no_larger_than_a_tile_is_one() -> None:
    assert [tile.hw for tile in TileGrid((64, 50), 64, 8)] == [(64, 50)]
    assert not needs_tiles((64, 50), 64)
    assert needs_tiles((50, 65), 64)
    assert not needs_tiles((5000, 6500), None)


def test_every_pixel_has_an_owner() -> None:
    grid = TileGrid((150, 203), 64, 16)
    owners = np.full((150, 203), -1)
    for index, tile in enumerate(grid):
        owners[tile.y.core_start : tile.y.core_stop, tile.x.core_start : tile.x.core_stop] = index
    assert all(grid.owner(y, x) == owners[y, x] for y in range(150) for x in range(203))
    assert sorted(np.unique(owners)) == list(range(len(grid)))


def test_parts_of_an_enlarged_map_are_those_of_the_whole() -> None:
    hw = (90, 131)
    maps = torch.rand(2, *cells_hw(hw), generator=torch.Generator().manual_seed(0))
    padded = (4 * maps.shape[1], 4 * maps.shape[2])
    whole = F.interpolate(maps[None], padded, mode="bilinear", align_corners=False)[0, :, : hw[0], : hw[1]]
    enlarged = enlarge_part(maps, hw, slice(None), slice(None))
    torch.testing.assert_close(enlarged, whole, rtol=0, atol=1e-6)
    rng = np.random.default_rng(1)
    for _ in range(60):
        top, left = int(rng.integers(hw[0])), int(rng.integers(hw[1]))
        rows = slice(top, int(rng.integers(top, hw[0])) + 1)
        columns = slice(left, int(rng.integers(left, hw[1])) + 1)
        assert torch.equal(enlarge_part(maps, hw, rows, columns), enlarged[:, rows, columns])


def test_stitched_maps_against_a_loop_over_cells() -> None:
    grid, generator = TileGrid((117, 150), 64, 24), torch.Generator().manual_seed(2)
    maps = [torch.rand(2, *cells_hw(tile.hw), generator=generator) for tile in grid]
    stitched = StitchedMaps(2, grid, torch.device("cpu"))
    for tile, of_tile in zip(grid, maps):
        stitched.add(tile, of_tile)
    height, width = cells_hw(grid.image_hw)
    expected = np.zeros((2, height, width))
    for y in range(height):
        for x in range(width):
            total, weights = np.zeros(2), 0.0
            for tile, of_tile in zip(grid, maps):
                ty, tx = y - tile.y.start // 4, x - tile.x.start // 4
                rows, columns = of_tile.shape[1:]
                if 0 <= ty < rows and 0 <= tx < columns:
                    depth_y = [24 // 4]
                    depth_x = [24 // 4]
                    depth_y += [ty + 1] if tile.y.start else []
                    depth_y += [rows - ty] if tile.y.stop < 117 else []
                    depth_x += [tx + 1] if tile.x.start else []
                    depth_x += [columns - tx] if tile.x.stop < 150 else []
                    weight = min(depth_y) * min(depth_x)
                    total += weight * of_tile[:, ty, tx].numpy()
                    weights += weight
            expected[:, y, x] = total / weights
    np.testing.assert_allclose(stitched.mean().numpy(), expected, rtol=1e-5)


def test_whole_cells() -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    filled = fill_cells(pixels)
    assert filled.shape == (8, 8, 3)
    assert (filled[:5, :7] == pixels).all()
    assert (filled[5:, :7] == pixels[4]).all()
    assert fill_cells(filled) is filled


@pytest.mark.parametrize("index", range(9))
def test_edges_inside_the_image(index: int) -> None:
    grid = TileGrid((150, 150), 64, 16)
    tile = grid[index]
    mask = np.random.default_rng(index).random(tile.hw) < 0.3
    expected = [
        (y, x)
        for y in range(tile.y.start, tile.y.stop)
        for x in range(tile.x.start, tile.x.stop)
        if mask[y - tile.y.start, x - tile.x.start]
        and (
            (y in (tile.y.start, tile.y.stop - 1) and 0 < y < 149)
            or (x in (tile.x.start, tile.x.stop - 1) and 0 < x < 149)
        )
    ]
    assert list(inner_edge(mask, tile, grid.image_hw)) == expected


def test_the_common_part_of_two_tiles() -> None:
    grid = TileGrid((150, 203), 64, 16)
    image = np.arange(150 * 203).reshape(150, 203)
    for index, other in [(0, 1), (1, 0), (0, 4), (5, 0), (2, 2)]:
        here, there = common_part(grid[index], grid[other])
        one, two = image[grid[index].at][here], image[grid[other].at][there]
        assert np.array_equal(one, two)
        assert set(one.ravel()) == set(image[grid[index].at].ravel()) & set(image[grid[other].at].ravel())
