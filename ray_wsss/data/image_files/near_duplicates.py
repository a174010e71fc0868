"""Images of one data set that look like images of another: scores on such images are too high.

A perceptual hash is 64 bits, the signs of an image's lowest 8 x 8 frequencies against their median (pHash, by
C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010; the package ImageHash
has the same bits but for the resize). It is made here, since ten lines need no package on every node.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from ray_wsss.data.reader import ShardReader, open_shard, shard_paths
from ray_wsss.storage import read_side_by_side

MAX_DISTANCE = 4
"""Most bits that differ between the hashes of near-duplicates. An image that was resized or compressed again
differs in 0 to 4; of 207,690 pairs of COCO's
photographs, the nearest differed in 10."""

_SIDE_PX = 32
_LOW = 8
_ROWS_AT_ONCE = 4096
_LEAST_CONTRAST = 2.0
"""Least standard deviation of an image's greys, of 255: noise decides the hash of an even image."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Images of a data set that look like images of another."""

    count: int
    """Number of images that look like at least one image of the other data set."""
    examples: tuple[tuple[str, str], ...]
    """At most three pairs of ids, one from each data set."""


def perceptual_hash(pixels: NDArray[np.uint8]) -> int | None:
    """64-bit hash, as a signed number, of an image (H, W, 3) RGB; None for an image without contrast."""
    grey = Image.fromarray(pixels).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX).convert("L")
    values = np.asarray(grey, np.float32)
    if values.std() < _LEAST_CONTRAST:
        return None
    low = np.asarray(dctn(values, norm="ortho"))[:_LOW, :_LOW]
    bits = low > np.median(low)
    return int(np.packbits(bits).view(">i8")[0])


def find_near_duplicates(dataset: Path, other: Path) -> NearDuplicates:
    """Images of ``dataset`` that look like images of ``other``.

    Images of data sets from before version 0.2 have no hash, and count as unlike all others.

    Raises:
        UserError: a shard is missing or damaged.
    """
    ours, theirs = _read_hashes(dataset), _read_hashes(other)
    match = nearest_within(ours, theirs, MAX_DISTANCE)
    found = np.flatnonzero(match >= 0)
    our_ids = _read_ids(dataset, found[:3])
    their_ids = _read_ids(other, match[found[:3]])
    return NearDuplicates(count=len(found), examples=tuple(zip(our_ids, their_ids)))


def nearest_within(
    hashes: NDArray[np.int64], others: NDArray[np.int64], max_distance: int
) -> NDArray[np.int64]:
    """Index of the nearest of ``others`` (M,) for each of ``hashes`` (N,), -1 if more than ``max_distance``
    bits differ.

    The number of equal bits is a product of matrices of -1 and 1, in which even M = 100,000 and N = 10,000
    take seconds. Hash 0 means none: no image with contrast has it, since half of its bits are set.
    """
    nearest = np.full(len(hashes), -1, np.int64)
    most = np.full(len(hashes), 64 - 2 * max_distance - 1, np.float32)  # of 64 - 2 x distance
    ours = _signs(hashes)
    for start in range(0, len(others), _ROWS_AT_ONCE):
        signs = _signs(others[start : start + _ROWS_AT_ONCE]).T
        for first in range(0, len(hashes), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            likeness = ours[rows] @ signs
            best = likeness.max(1)
            better = best > most[rows]
            if better.any():
                nearest[rows][better] = start + likeness[better].argmax(1)
                most[rows][better] = best[better]
    return nearest


def _signs(hashes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Bits (N, 64) as -1 and 1; zeros for hash 0."""
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8), axis=1)
    return (bits.astype(np.float32) * 2 - 1) * (hashes != 0)[:, None]


def _read_hashes(dataset: Path) -> NDArray[np.int64]:
    """Hashes (N,) of all images in row order, 0 for an image without."""
    return np.concatenate(list(read_side_by_side(_hashes_of, shard_paths(dataset))))


def _hashes_of(path: Path) -> NDArray[np.int64]:
    with open_shard(path) as file:
        if "perceptual_hash" not in file.schema_arrow.names:
            return np.zeros(file.metadata.num_rows, np.int64)
        column = file.read(columns=["perceptual_hash"], use_threads=False).column(0)
    return column.fill_null(0).to_numpy().astype(np.int64)


def _read_ids(dataset: Path, rows: NDArray[np.int64]) -> list[str]:
    reader = ShardReader(dataset)
    return [reader.read(int(row), ["image_id"])["image_id"] for row in rows]
