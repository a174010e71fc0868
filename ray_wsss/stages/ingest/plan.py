"""Which images of a source are stored in which shard of a data set.

While the data set is made, tasks read the rows of their shard from its folder:

DATASET/unfinished/plan/part-00000.parquet  rows of `SHARDS_PER_PART` shards; each shard is a row group
"""

import random
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_wsss.data.reader import open_shard
from ray_wsss.data.schema import SourceRow
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.storage import replace_atomically

ROWS_PER_SHARD = 256
"""Images per shard."""
ORDER_SEED = 0
"""Seed of the order that a data set's images are stored in."""
SHARDS_PER_PART = 64
"""Shards in a file of the plan."""
_ROWS_AT_A_TIME = 2**16
_MOST_READINGS = 32
"""Times that rows on disk are read to put them in order: more often takes long, less often takes memory."""


def plan_shards(
    rows: Sequence[SourceRow],
    rows_per_shard: int = ROWS_PER_SHARD,
    seed: int = ORDER_SEED,
    clumps: NDArray[np.integer] | None = None,
) -> Iterator[SourceRows]:
    """Shuffle the rows of a source and cut them into shards; equal arguments give equal shards.

    Sources are often sorted by class. Training reads neighbouring rows together, so they must be as mixed as
    the whole data set. Rows of a clump (`Source.clumps`) stay together, up to the size of a shard, and are
    shuffled within their shard.
    """
    source_rows = SourceRows.of(rows)
    order = _order(len(source_rows), rows_per_shard, random.Random(seed), clumps)
    most = max(_ROWS_AT_A_TIME, -(-len(order) // _MOST_READINGS))
    shards_at_a_time = -(-most // rows_per_shard)
    for at in range(0, len(order), shards_at_a_time * rows_per_shard):
        here = source_rows.take(order[at : at + shards_at_a_time * rows_per_shard])
        for first in range(0, len(here), rows_per_shard):
            yield here[first : first + rows_per_shard]


def write_plan(out: Path, shards: Iterator[SourceRows]) -> int:
    """Write the rows of all shards for `read_plan`; returns the number of shards."""
    count = 0
    while part := list(islice(shards, SHARDS_PER_PART)):
        schema = part[0].table.schema
        with replace_atomically(_plan_path(out, count)) as path, pq.ParquetWriter(path, schema) as writer:
            for rows in part:
                writer.write_table(rows.table, row_group_size=len(rows))
        count += len(part)
    return count


def read_plan(out: Path, shard_index: int) -> SourceRows:
    """The rows of a shard. Raises UserError if the plan is damaged."""
    with open_shard(_plan_path(out, shard_index)) as file:
        return SourceRows(file.read_row_group(shard_index % SHARDS_PER_PART, use_threads=False))


def _plan_path(out: Path, shard_index: int) -> Path:
    return out / "unfinished" / "plan" / f"part-{shard_index // SHARDS_PER_PART:05d}.parquet"


def _order(
    count: int, rows_per_shard: int, generator: random.Random, clumps: NDArray[np.integer] | None
) -> NDArray[np.integer]:
    """Index of the row at each place, in 4 bytes a row: a permutation isn't known in part."""
    order = array("I", range(count))
    if clumps is None:
        generator.shuffle(order)
        return np.asarray(order)
    pieces = _cut(clumps, rows_per_shard)
    generator.shuffle(pieces)
    order = array("I", (row for piece in pieces for row in order[piece]))
    for at in range(0, count, rows_per_shard):
        shard = order[at : at + rows_per_shard]
        generator.shuffle(shard)
        order[at : at + rows_per_shard] = shard
    return np.asarray(order)


def _cut(clumps: NDArray[np.integer], most: int) -> list[slice]:
    """Slices of rows of one clump each, of at most ``most`` rows."""
    starts = np.flatnonzero(np.diff(clumps, prepend=-1)).tolist()
    ends = [*starts[1:], len(clumps)]
    return [
        slice(at, min(at + most, end)) for start, end in zip(starts, ends) for at in range(start, end, most)
    ]
