"""Units of work: a few dozen consecutive images of a data set, read and decoded on a CPU.

What comes out of a chunk depends on the chunk alone, so that a run that was interrupted, or that other
actors did, gives the same bytes. One chunk in is one file out (`runs.parts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ray_wsss.data.reader import open_shard, shard_paths
from ray_wsss.data.schema import ROWS_PER_GROUP
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path, read_side_by_side

ROWS_PER_CHUNK = ROWS_PER_GROUP
"""At most. A row group of ingest's shards, so that a chunk is read without its neighbours."""
IMAGE_COLUMNS = ("image_id", "image", "orientation", "image_labels")
"""What a stage that looks at images reads of a data set."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one shard."""

    index: int
    """Position in the data set's plan, from 0."""
    path: str
    first_row: int
    rows: int


def plan_chunks(dataset: Path, rows: int = ROWS_PER_CHUNK) -> list[Chunk]:
    """Cut every shard of ``dataset`` into chunks of at most ``rows`` rows; the same for every call.

    Raises:
        UserError: no such folder, no shards in it, or a damaged one.
    """
    chunks: list[Chunk] = []
    paths = shard_paths(dataset)
    for path, length in zip(paths, read_side_by_side(_length_of, paths)):
        for first in range(0, length, rows):
            chunks.append(Chunk(len(chunks), str(path.absolute()), first, min(rows, length - first)))
    if not chunks:
        raise UserError(f"{dataset} has shards without a row; expected at least one image")
    return chunks


def _length_of(path: Path) -> int:
    """Rows of a shard."""
    with open_shard(path) as file:
        _check_columns(path, file.schema_arrow)
        return file.metadata.num_rows


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in IMAGE_COLUMNS if name not in schema.names]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}'; expected a shard written by 'ray-wsss ingest'")


def read_chunk(chunk: Chunk, columns: Sequence[str]) -> pa.Table:
    """The rows of a chunk; of the shard, only the row groups that hold them are read."""
    with open_shard(parse_path(chunk.path)) as file:
        groups, before, end = [], 0, 0
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
    return table
