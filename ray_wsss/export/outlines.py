"""Masks as polygons: one exact ring per connected region, holes included.

The polygons of export formats can't exclude an area. A cut of zero width, there and back, therefore joins
each hole to the outline around it. Under the even-odd rule, which rasterisers follow, the hole stays a hole.

There are two kinds of rings, since rasterisers differ in the pixels that they count as inside. `edge_ring`
follows the edges between pixels; pycocotools turns it back into exactly the mask. `centre_ring` passes
through the centres of the outermost pixels. OpenCV's fillPoly, which most readers of YOLO files use, paints
those pixels too.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

_LEVEL = 0.75
"""Level of the contours in a mask of 0 and 1. Above 0.5 they lie nearer to the pixel inside, so that rounding
gives that pixel."""

Ring = NDArray[np.int64]
"""(N, 2) corners, x before y; the last corner joins the first, which is not repeated."""


def edge_ring(region: NDArray[np.bool_]) -> Ring:
    """Outline of a connected region (H, W) along the edges of its pixels; touching corners connect too.

    Coordinates are corners of pixels: the pixel in row y and column x spans y to y + 1 and x to x + 1.
    """
    # Each segment of a contour crosses the square between the centres of four pixels, which has exactly one
    # corner of pixels in it.
    return _merge([np.floor((c[:-1] + c[1:]) / 2).astype(np.int64) for c in _contours(region)])


def centre_ring(region: NDArray[np.bool_]) -> Ring:
    """Outline of a connected region (H, W) through the centres of its pixels; touching corners connect too.

    Coordinates are indices of pixels. The ring of a single pixel has one corner; the ring of a line of pixels
    runs back along itself.
    """
    # `_contours` pads the region, which shifts contours by one pixel.
    return _merge([np.rint(c[:-1]).astype(np.int64) - 1 for c in _contours(region)])


def join_rings(rings: list[Ring]) -> Ring:
    """One ring through all rings, each joined to those before it by a cut between the nearest corners."""
    joined, *others = rings
    for ring in others:
        distances = ((joined[:, None] - ring[None]) ** 2).sum(2)
        at, start = np.unravel_index(distances.argmin(), distances.shape)
        around = np.concatenate([ring[start:], ring[: start + 1]])
        joined = np.concatenate([joined[: at + 1], around, joined[at:]])
    return joined


def _contours(region: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed contours (N, 2), y before x: the outer one, then the holes from left to right."""
    framed = np.pad(region.astype(np.float32), 1)
    contours = find_contours(framed, _LEVEL, fully_connected="high")
    outer = max(contours, key=lambda c: np.ptp(c[:, 0]) + np.ptp(c[:, 1]))
    return [outer, *sorted((c for c in contours if c is not outer), key=lambda c: c[:, 1].min())]


def _merge(rings_yx: list[Ring]) -> Ring:
    """Join the outer ring and the rings of its holes into one ring, x before y."""
    merged, *holes = rings_yx
    for hole in holes:
        start = np.lexsort((hole[:, 0], hole[:, 1]))[0]
        y, x = hole[start]
        # Left of a hole's leftmost corner the next ring is already merged, since holes go from left to right.
        beside = np.flatnonzero((merged[:, 0] == y) & (merged[:, 1] <= x))
        at = beside[merged[beside, 1].argmax()]
        around = np.concatenate([hole[start:], hole[: start + 1]])
        merged = np.concatenate([merged[: at + 1], around, merged[at:]])
    return _without_needless(merged)[:, ::-1]


def _without_needless(ring: Ring) -> Ring:
    """The ring without repeated corners and without corners that it passes straight through."""
    moved = (ring != np.roll(ring, 1, axis=0)).any(1)
    if not moved.any():
        return ring[:1]
    ring = ring[moved]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    goes_back = (before * after).sum(1) < 0
    return ring[turns | goes_back]
