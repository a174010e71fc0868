"""Rows of a source as Arrow batches, which take a tenth of the memory of Python objects; many rows, on disk.

Even so, a row takes 140 bytes or so, and some sources have 100 million.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain, islice, pairwise
from tempfile import TemporaryFile, gettempdir
from typing import Any, overload
from weakref import finalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_wsss.data.schema import SourceRow
from ray_wsss.errors import UserError

_BATCH = 2**14
_IN_MEMORY = 2**16
"""Most rows that stay in memory."""
_TEXTS = ("image_id", "path", "error")
_DEFAULTS = {f.name: f.default for f in fields(SourceRow) if f.name not in (*_TEXTS, "image_labels")}
"""Fields that few sources set; those that differ from the default are kept as JSON."""
_SCHEMA = pa.schema(
    [
        # Bytes, since names of files may not be UTF-8; large, since a column may exceed 2 GiB.
        *(pa.field(name, pa.large_binary()) for name in _TEXTS),
        pa.field("image_labels", pa.list_(pa.int32())),
        pa.field("others", pa.large_binary()),
    ]
)


class SourceRows(Sequence[SourceRow]):
    """A sequence of `SourceRow` that is kept as Arrow batches, and makes each row when it is asked for.

    The batches have `_BATCH` rows each, the last one fewer.
    """

    def __init__(self, table: pa.Table, spilled: "_Spilled | None" = None) -> None:
        """Rows of ``table``, or those of ``spilled``, which then are not in memory."""
        self.table = table
        self._spilled = spilled

    @classmethod
    def of(cls, rows: Iterable[SourceRow]) -> "SourceRows":
        """Store rows, which are taken from the iterable a few at a time; more than `_IN_MEMORY` on disk.

        Raises:
            UserError: the disk is full.
        """
        if isinstance(rows, SourceRows):
            return rows
        batches = (_to_arrow(batch) for batch in _batched(rows, _BATCH))
        first = list(islice(batches, _IN_MEMORY // _BATCH))
        more = next(batches, None)
        if more is None:
            return cls(pa.Table.from_batches(first, _SCHEMA).combine_chunks())
        return cls(_SCHEMA.empty_table(), _Spilled(chain(first, [more], batches)))

    @property
    def any_remote(self) -> bool:
        """Whether some image is behind a URI."""
        options = pc.MatchSubstringOptions("://")
        found = (pc.call_function("match_substring", [batch["path"]], options) for batch in self.batches())
        return any(pc.call_function("any", [of_batch]).as_py() for of_batch in found)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow batches, one after the other."""
        return self._spilled.batches() if self._spilled else iter(self.table.to_batches(max_chunksize=_BATCH))

    def __len__(self) -> int:
        return self._spilled.rows if self._spilled else len(self.table)

    def __iter__(self) -> Iterator[SourceRow]:
        return chain.from_iterable(map(_from_arrow, self.batches()))

    @overload
    def __getitem__(self, at: int) -> SourceRow: ...
    @overload
    def __getitem__(self, at: slice) -> "SourceRows": ...
    def __getitem__(self, at: int | slice) -> "SourceRow | SourceRows":
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        return next(iter(self.take(np.array([range(len(self))[at]]))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SourceRows) or len(self) != len(other):
            return False
        return all(a.equals(b) for a, b in zip(self.batches(), other.batches()))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def take(self, rows: NDArray[np.integer]) -> "SourceRows":
        """Copy, in memory, of the rows with these indices, in their order; reads each batch at most once."""
        if self._spilled is None:
            return SourceRows(self.table.take(pa.array(rows)).combine_chunks())
        return SourceRows(self._spilled.take(rows))


class _Spilled:
    """Batches of rows in a temporary file, which is deleted with this object."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self.rows = 0
        file = TemporaryFile(prefix="ray_wsss_")  # noqa: SIM115
        finalize(self, file.close)
        try:
            with pa.ipc.new_file(pa.PythonFile(file, "w"), _SCHEMA) as writer:
                for batch in batches:
                    writer.write_batch(batch)
                    self.rows += len(batch)
        except OSError as error:
            raise UserError(
                f"{self.rows:,} rows of the source fill {gettempdir()} ({error.strerror or error}); expected "
                "more room there, or the variable TMPDIR to name a larger folder"
            ) from None
        self._reader = pa.ipc.open_file(pa.PythonFile(file, "r"))

    def batches(self) -> Iterator[pa.RecordBatch]:
        return map(self._reader.get_batch, range(self._reader.num_record_batches))

    def take(self, rows: NDArray[np.integer]) -> pa.Table:
        batch_of = rows // _BATCH
        by_batch = np.argsort(batch_of, kind="stable")
        ends = np.searchsorted(batch_of[by_batch], np.arange(self._reader.num_record_batches + 1))
        found = [
            self._reader.get_batch(k).take(pa.array(rows[by_batch[start:end]] - k * _BATCH))
            for k, (start, end) in enumerate(pairwise(ends.tolist()))
            if end > start
        ]
        back = np.empty(len(rows), np.int64)
        back[by_batch] = np.arange(len(rows))
        return pa.Table.from_batches(found, _SCHEMA).take(pa.array(back)).combine_chunks()


def _to_arrow(rows: Sequence[SourceRow]) -> pa.RecordBatch:
    columns = {name: [_to_bytes(getattr(row, name)) for row in rows] for name in _TEXTS}
    labels = [row.image_labels for row in rows]
    others = [_to_bytes(_others(row)) for row in rows]
    return pa.record_batch([*columns.values(), labels, others], schema=_SCHEMA)


def _from_arrow(batch: pa.RecordBatch) -> Iterator[SourceRow]:
    columns = [batch.column(name).to_pylist() for name in _SCHEMA.names]
    for image_id, path, error, labels, others in zip(*columns):
        yield SourceRow(
            image_id=image_id.decode("utf-8", "surrogatepass"),
            path=path.decode("utf-8", "surrogatepass"),
            error=None if error is None else error.decode("utf-8", "surrogatepass"),
            image_labels=None if labels is None else tuple(labels),
            **({} if others is None else _restored(json.loads(others))),
        )


def _others(row: SourceRow) -> str | None:
    found = {name: getattr(row, name) for name, default in _DEFAULTS.items()}
    changed = {name: value for name, value in found.items() if value != _DEFAULTS[name]}
    return json.dumps(changed) if changed else None


def _restored(others: dict[str, Any]) -> dict[str, Any]:
    """Fields as `SourceRow` has them: JSON made lists of tuples, and annotations are lists by themselves."""
    return {name: value if name == "annotations" else _as_tuple(value) for name, value in others.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def _to_bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _batched(rows: Iterable[SourceRow], size: int) -> Iterator[list[SourceRow]]:
    """Lists of ``size`` rows, the last one shorter."""
    left = iter(rows)
    while batch := list(islice(left, size)):
        yield batch
