"""Which images of one data set are images of another, although their ids may differ.

A data set that went through another tool comes back with other ids: the ids of our COCO export are numbers,
those of VOC are file names. Images are matched by the first of these that they share:

1. the image id,
2. the file name that exports give to the image (`data.file_names.FileNames`),
3. the bytes of the file.

An id or a name counts only if the images have the same size and look alike, since two data sets may both have
an image "1".
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ray_wsss.data.file_names import FileNames, plain_name
from ray_wsss.data.image_files.near_duplicates import MAX_DISTANCE
from ray_wsss.data.reader import ShardReader, open_shard, shard_paths
from ray_wsss.storage import read_side_by_side

_SHOWN = 3
"""Ids that a sentence lists."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Size and hash of an image, which tell it from others without reading it."""

    image_id: str
    size_hw: tuple[int, int]
    perceptual_hash: int
    """0 if the image has none."""

    def like(self, other: "_Look", max_distance: int = MAX_DISTANCE) -> bool:
        """Tell whether both may be the same image: at most ``max_distance`` bits of their hashes differ."""
        if self.size_hw != other.size_hw:
            return False
        hashes = self.perceptual_hash, other.perceptual_hash
        return 0 in hashes or ((hashes[0] ^ hashes[1]) & (2**64 - 1)).bit_count() <= max_distance


@dataclass(kw_only=True)
class Matches:
    """Images of a data set, "ours", that another data set, "theirs", has too."""

    rows: dict[str, int] = field(default_factory=dict)
    """Row in theirs by image id in ours."""
    ways: dict[str, int] = field(default_factory=dict)
    """Number of matches by what the images share: "id", "file name" or "content"."""
    unmatched: list[str] = field(default_factory=list)
    """Ids of theirs that are none of our images."""
    repeated: list[str] = field(default_factory=list)
    """Ids of theirs that are one of our images, which an earlier row of theirs is too."""

    def describe(self, ours: Path, theirs: Path) -> Iterator[str]:
        """Sentences that count what matched and what did not."""
        images = len(self.rows)
        ways = ", ".join(f"{count:,} by {way}" for way, count in self.ways.items())
        yield f"{images:,} images of {ours} have masks in {theirs}, found {ways}"
        if self.unmatched:
            yield f"{_some(self.unmatched)} of {theirs} with masks are none of {ours}, and are left out"
        if self.repeated:
            yield f"{_some(self.repeated)} of {theirs} repeat an image, whose first mask counts"


def match_images(ours: Path, theirs: Path, rows: Sequence[int] | None = None) -> Matches:
    """Match images of the data set ``theirs`` with those of ``ours``.

    Args:
        rows: rows of ``theirs`` that are looked for; None: all.

    Raises:
        UserError: a shard is missing or damaged.
    """
    our_looks, their_looks = _looks(ours), _looks(theirs)
    row_of_id = {look.image_id: row for row, look in enumerate(our_looks)}
    names = FileNames(row_of_id)
    row_of_name = {names.name(image_id): row for image_id, row in row_of_id.items()}
    found = Matches()
    left: list[int] = []
    for row in rows if rows is not None else range(len(their_looks)):
        look = their_looks[row]
        for way, ours_row in (
            ("id", row_of_id.get(look.image_id)),
            ("file name", row_of_name.get(plain_name(look.image_id))),
        ):
            if ours_row is not None and look.like(our_looks[ours_row]):
                _note(found, way, our_looks[ours_row].image_id, row, look.image_id)
                break
        else:
            left.append(row)
    if left:
        same = _Contents(ours, our_looks)
        reader = ShardReader(theirs)
        for row in left:
            image_id = same.find(their_looks[row], reader, row)
            if image_id is None:
                found.unmatched.append(their_looks[row].image_id)
            else:
                _note(found, "content", image_id, row, their_looks[row].image_id)
    return found


def _note(found: Matches, way: str, image_id: str, row: int, their_id: str) -> None:
    if image_id in found.rows:
        found.repeated.append(their_id)
        return
    found.rows[image_id] = row
    found.ways[way] = found.ways.get(way, 0) + 1


class _Contents:
    """Finds images of a data set by their bytes; only images that look the same are read."""

    def __init__(self, dataset: Path, looks: Sequence[_Look]) -> None:
        self.reader, self.looks = ShardReader(dataset), looks
        self.of_size: Mapping[tuple[int, int], list[int]] = defaultdict(list)
        for row, look in enumerate(looks):
            self.of_size[look.size_hw].append(row)
        self.digests: dict[int, bytes] = {}

    def find(self, look: _Look, theirs: ShardReader, their_row: int) -> str | None:
        """Id of the first image with the bytes of a row of ``theirs``; None if there is none."""
        wanted: bytes | None = None
        for row in self.of_size.get(look.size_hw, ()):
            if look.like(self.looks[row], 0):
                wanted = wanted or _digest(theirs, their_row)
                if row not in self.digests:
                    self.digests[row] = _digest(self.reader, row)
                if self.digests[row] == wanted:
                    return self.looks[row].image_id
        return None


def _digest(reader: ShardReader, row: int) -> bytes:
    return hashlib.sha256(reader.read(row, ["image"])["image"]).digest()


def _looks(dataset: Path) -> list[_Look]:
    """One entry per row of a data set."""
    return [look for looks in read_side_by_side(_looks_of, shard_paths(dataset)) for look in looks]


def _looks_of(path: Path) -> list[_Look]:
    with open_shard(path) as file:
        names = ["image_id", "height", "width"]
        # Earlier versions wrote no hashes.
        hashed = "perceptual_hash" in file.schema_arrow.names
        table: pa.Table = file.read(columns=[*names, *(["perceptual_hash"] if hashed else [])])
    columns = [table[name].to_pylist() for name in names]
    hashes = table["perceptual_hash"].to_pylist() if hashed else [None] * len(table)
    return [_Look(image_id, (h, w), value or 0) for image_id, h, w, value in zip(*columns, hashes)]


def _some(image_ids: Sequence[str]) -> str:
    """The number of images, and the first ids: "5 images (a, b, c, ...)"."""
    more = ", ..." if len(image_ids) > _SHOWN else ""
    return f"{len(image_ids):,} images ({', '.join(image_ids[:_SHOWN])}{more})"
