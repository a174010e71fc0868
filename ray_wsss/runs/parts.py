"""Parts: the output files of a stage, one per chunk, each written in full or not at all.

OUT/shards/part-000000.parquet

The part of a chunk always has the same name and, from the same inputs, the same content. Writing it twice
does no harm, and a resumed run writes only the parts that are missing. The metadata of a part hold the run's
fingerprint, so a part from a run with other settings, even one that is written late by a process of that
run, is never taken for a part of this run.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_wsss.data.reader import open_parquet
from ray_wsss.data.schema import ROWS_PER_GROUP, write_table_atomically
from ray_wsss.runs.read_chunks import Chunk
from ray_wsss.runs.tally import COUNTS, Tally
from ray_wsss.storage import read_side_by_side

_KEY = b"ray_wsss"


@dataclass(frozen=True)
class Parts:
    """The parts of one output folder."""

    out: Path
    fingerprint: str
    """Hash of everything that decides the content (`runs.manifest.Output.fingerprint`)."""

    def path(self, index: int) -> Path:
        """Path of the part of the chunk with this index."""
        return self.out / "shards" / f"part-{index:06d}.parquet"

    def write(
        self, chunk: Chunk, table: pa.Table, tally: Tally, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        """Write the part of a chunk, with the counts of ``tally`` in its metadata.

        The seconds of ``tally`` are left out: they would make equal parts differ.
        """
        note = {
            "fingerprint": self.fingerprint,
            **{name: getattr(tally, name) for name in COUNTS},
            **({"unknown": tally.unknown} if tally.unknown else {}),
        }
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(note)}
        write_table_atomically(
            table.replace_schema_metadata(metadata), self.path(chunk.index), rows_per_group
        )

    def read_tally(self, chunk: Chunk) -> Tally | None:
        """Counts of the part of a chunk; None if the part is missing, cut short or from another run.

        Only the footer is read. It comes last in the file, so a part that has one was written in full.
        """
        try:
            with open_parquet(self.path(chunk.index)) as file:
                footer = file.metadata
            note = json.loads((footer.metadata or {})[_KEY])
            if note["fingerprint"] != self.fingerprint or footer.num_rows != chunk.rows:
                return None
            counts: dict[str, Any] = {name: int(note[name]) for name in COUNTS}
            return Tally(**counts, unknown=int(note.get("unknown", 0)))
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
            return None

    def finished(self, chunks: Sequence[Chunk]) -> dict[int, Tally]:
        """Counts of the parts that exist, by index of their chunk."""
        # The folder is listed first: a store takes as long to say that a part is missing as to read one.
        there = {path.name for path in self.path(0).parent.glob("*.parquet")}
        candidates = [chunk for chunk in chunks if self.path(chunk.index).name in there]
        tallies = read_side_by_side(self.read_tally, candidates)
        return {chunk.index: tally for chunk, tally in zip(candidates, tallies) if tally is not None}

    def strays(self, chunks: Sequence[Chunk]) -> Iterator[Path]:
        """Files in the folder of the parts that belong to no chunk, such as leftovers of killed writers."""
        known = {self.path(chunk.index) for chunk in chunks}
        return (path for path in self.path(0).parent.glob("*") if path not in known)
