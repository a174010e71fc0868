"""Chunks, the units of work: a few dozen consecutive images of a data set, read and decoded on a CPU.

The output of a chunk depends on that chunk alone, so a run writes the same bytes whether or not it was
interrupted, and whichever actors do the work. Each chunk becomes one output file (`runs.parts`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ray_wsss.data.reader import open_shard, shard_paths
from ray_wsss.data.schema import ROWS_PER_GROUP, unknown_as_null
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path, read_side_by_side

ROWS_PER_CHUNK = ROWS_PER_GROUP
"""Most rows of a chunk: one row group of ingest's shards, so reading a chunk reads no other rows."""
IMAGE_COLUMNS = ("image_id", "image", "orientation", "image_labels")
"""Columns of a data set that stages read for their images."""


def chunks_per_plan(actors: int) -> int:
    """Most chunks that a run hands to Ray at a time, since each takes 0.7 ms and 6 kB of the head.

    The least is about a million images, planned in 11 s. Actors start anew with each plan, which takes a
    minute with ViT-H, so each gets chunks for an hour (at 4 images/s).
    """
    return max(16_384, 256 * actors)


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one shard: ``rows`` of them, from ``first_row`` (counted from 0) on."""

    index: int
    """Position in the list of `plan_chunks`, from 0."""
    path: str
    """Absolute path or URI of the shard."""
    first_row: int
    rows: int


@dataclass(frozen=True)
class Slice:
    """One of ``count`` parts of a data set; the first has number 1. Their numbers of chunks differ by 1 at
    most."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Read ``2/8``, the second of eight. Raises UserError if the text is something else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--slice is {text}; expected NUMBER/COUNT, such as 2/8 for the second of eight")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """Consecutive chunks, with the indices that they have in the whole. Raises UserError for none."""
        first, end = (len(chunks) * k // self.count for k in (self.number - 1, self.number))
        if first == end:
            raise UserError(
                f"--slice is {self} of {len(chunks)} chunks of {ROWS_PER_CHUNK} images; "
                f"expected at most {len(chunks)} slices"
            )
        return chunks[first:end]


def plan_chunks(dataset: Path, rows: int = ROWS_PER_CHUNK) -> list[Chunk]:
    """Cut every shard of ``dataset`` into chunks of at most ``rows`` rows; every call returns the same.

    Raises:
        UserError: the folder has no shards or no rows, or a shard is damaged or lacks a column.
    """
    chunks: list[Chunk] = []
    paths = shard_paths(dataset)
    for path, length in zip(paths, read_side_by_side(_length_of, paths)):
        for first in range(0, length, rows):
            chunks.append(Chunk(len(chunks), str(path.absolute()), first, min(rows, length - first)))
    if not chunks:
        raise UserError(f"{dataset} has only shards without a row; expected at least one image")
    return chunks


def _length_of(path: Path) -> int:
    """Number of rows in a shard. Raises UserError if the shard lacks one of `IMAGE_COLUMNS`."""
    with open_shard(path) as file:
        _check_columns(path, file.schema_arrow)
        return file.metadata.num_rows


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in IMAGE_COLUMNS if name not in schema.names]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}'; expected a shard written by 'ray-wsss ingest'")


def read_chunk(chunk: Chunk, columns: Sequence[str]) -> pa.Table:
    """Read the rows of a chunk; only the row groups that hold them are read.

    ``image_labels`` is null for unknown labels, whichever version wrote the data set.

    Raises:
        UserError: the shard is damaged, or has fewer rows than when the chunks were planned.
    """
    with open_shard(parse_path(chunk.path)) as file:
        groups: list[int] = []
        before, end = 0, 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            if start < chunk.first_row + chunk.rows and end > chunk.first_row:
                before = before if groups else start
                groups.append(group)
        try:
            table = file.read_row_groups(groups, columns=list(columns), use_threads=False)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{chunk.path} is damaged ({error}); write it again") from error
    table = table.slice(chunk.first_row - before, chunk.rows)
    if len(table) != chunk.rows:
        raise UserError(
            f"{chunk.path} has lost rows since the run began; "
            f"expected {chunk.rows} from row {chunk.first_row} on"
        )
    return unknown_as_null(table)
