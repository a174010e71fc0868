"""Masks as polygons: one ring per connected region, exact, with holes.

A format's polygons can't say "but not this part". So a hole is joined to the outline around it by a cut of no
width, there and back: by the even-odd rule, which rasterisers follow, the hole stays a hole.

Rings come in two kinds, since rasterisers differ in which pixels a polygon holds. `edge_ring` follows the
edges between pixels; pycocotools gives back exactly the mask. `centre_ring` goes through the centres of the
outermost pixels, which OpenCV's fillPoly, behind most readers of YOLO's files, paints as well.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

_LEVEL = 0.75
"""Contours lie nearer to the pixel inside than to the one outside: rounding gives the one inside."""

Ring = NDArray[np.int64]
"""(N, 2) x before y, not closed: the last corner is joined to the first."""


def edge_ring(region: NDArray[np.bool_]) -> Ring:
    """The outline of a connected (by corners too) region (H, W), along the edges of its pixels.

    Coordinates are corners of pixels: pixel (y, x) spans x to x + 1.
    """
    # A piece of a contour crosses the square between four neighbours' centres, and so one corner of pixels.
    return _merge([np.floor((c[:-1] + c[1:]) / 2).astype(np.int64) for c in _contours(region)])


def centre_ring(region: NDArray[np.bool_]) -> Ring:
    """The outline of a connected (by corners too) region (H, W), through the centres of its pixels.

    Coordinates are indices of pixels. A region of one pixel has one corner, a line of pixels goes back along
    itself.
    """
    # The frame that was added shifts contours by one pixel.
    return _merge([np.rint(c[:-1]).astype(np.int64) - 1 for c in _contours(region)])


def _contours(region: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed contours (N, 2), y before x, the outer one first, then holes from left to right."""
    framed = np.pad(region.astype(np.float32), 1)
    contours = find_contours(framed, _LEVEL, fully_connected="high")
    outer = max(contours, key=lambda c: np.ptp(c[:, 0]) + np.ptp(c[:, 1]))
    return [outer, *sorted((c for c in contours if c is not outer), key=lambda c: c[:, 1].min())]


def _merge(rings_yx: list[Ring]) -> Ring:
    """One ring of an outer one and its holes."""
    merged, *holes = rings_yx
    for hole in holes:
        start = np.lexsort((hole[:, 0], hole[:, 1]))[0]
        y, x = hole[start]
        # To the left of a hole's leftmost corner the region goes on until a ring that is merged already.
        beside = np.flatnonzero((merged[:, 0] == y) & (merged[:, 1] <= x))
        at = beside[merged[beside, 1].argmax()]
        around = np.concatenate([hole[start:], hole[: start + 1]])
        merged = np.concatenate([merged[: at + 1], around, merged[at:]])
    return _without_needless(merged)[:, ::-1]


def _without_needless(ring: Ring) -> Ring:
    """The ring without repeated corners and those on the way straight ahead."""
    moved = (ring != np.roll(ring, 1, axis=0)).any(1)
    if not moved.any():
        return ring[:1]
    ring = ring[moved]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    goes_back = (before * after).sum(1) < 0
    return ring[turns | goes_back]
