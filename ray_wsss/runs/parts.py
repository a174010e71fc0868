"""Output in parts, one file per chunk: a part is there in full or not at all, and says what made it.

OUT/shards/part-000000.parquet

The file of a chunk has one name and, from the same inputs, one content, so writing it twice does no harm
and a run goes on with the parts that are missing. Its metadata hold the run's fingerprint: a part that an
earlier run with other settings left behind, or a straggler of it wrote, is never taken for one of this run.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_wsss.data.reader import open_parquet
from ray_wsss.data.schema import ROWS_PER_GROUP, write_table_atomically
from ray_wsss.runs.chunks import Chunk
from ray_wsss.runs.tally import COUNTS, Tally
from ray_wsss.storage import read_side_by_side

_KEY = b"ray_wsss"


@dataclass(frozen=True)
class Parts:
    """The parts of one output folder."""

    out: Path
    fingerprint: str
    """Of everything that decides the content (`manifest.Output.fingerprint`)."""

    def path(self, index: int) -> Path:
        """File of a chunk."""
        return self.out / "shards" / f"part-{index:06d}.parquet"

    def write(
        self, chunk: Chunk, table: pa.Table, tally: Tally, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        """Write the part of a chunk with its counts; seconds would make equal parts differ."""
        note = {
            "fingerprint": self.fingerprint,
            **{name: getattr(tally, name) for name in COUNTS},
        }
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(note)}
        write_table_atomically(
            table.replace_schema_metadata(metadata), self.path(chunk.index), rows_per_group
        )

    def read_tally(self, chunk: Chunk) -> Tally | None:
        """Counts of a part; None where it is missing, cut short or another run's.

        The footer alone is read: it comes last, so that a part that has one was written in full.
        """
        try:
            with open_parquet(self.path(chunk.index)) as file:
                footer = file.metadata
            note = json.loads((footer.metadata or {})[_KEY])
            if note["fingerprint"] != self.fingerprint or footer.num_rows != chunk.rows:
                return None
            counts: dict[str, Any] = {name: int(note[name]) for name in COUNTS}
            return Tally(**counts)
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
            return None

    def finished(self, chunks: Sequence[Chunk]) -> dict[int, Tally]:
        """Counts of the chunks that have their part, by index."""
        # Listed first: asking a store for a part that isn't there takes as long as for one that is.
        there = {path.name for path in self.path(0).parent.glob("*.parquet")}
        candidates = [chunk for chunk in chunks if self.path(chunk.index).name in there]
        tallies = read_side_by_side(self.read_tally, candidates)
        return {chunk.index: tally for chunk, tally in zip(candidates, tallies) if tally is not None}

    def strays(self, chunks: Sequence[Chunk]) -> Iterator[Path]:
        """Files beside the parts that are none: what a killed writer left, parts of no chunk."""
        known = {self.path(chunk.index) for chunk in chunks}
        return (path for path in self.path(0).parent.glob("*") if path not in known)
