"""Rows of a source in Arrow's memory, which takes a tenth of that of Python objects."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain, islice
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_wsss.data.schema import SourceRow

_BATCH = 2**14
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
    """A sequence of `SourceRow` that is kept as an Arrow table, and makes each row when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, rows: Iterable[SourceRow]) -> "SourceRows":
        """Store rows, which are taken from the iterable a few at a time."""
        if isinstance(rows, SourceRows):
            return rows
        batches = [_to_arrow(batch) for batch in _batched(rows, _BATCH)]
        return cls(pa.Table.from_batches(batches, _SCHEMA).combine_chunks())

    @property
    def any_remote(self) -> bool:
        """Whether some image is behind a URI."""
        options = pc.MatchSubstringOptions("://")
        return (
            pc.call_function("match_substring", [self.table["path"]], options).unique().index(True).as_py()
            >= 0
        )

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[SourceRow]:
        return chain.from_iterable(map(_from_arrow, self.table.to_batches(max_chunksize=_BATCH)))

    @overload
    def __getitem__(self, at: int) -> SourceRow: ...
    @overload
    def __getitem__(self, at: slice) -> "SourceRows": ...
    def __getitem__(self, at: int | slice) -> "SourceRow | SourceRows":
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        row = range(len(self))[at]
        return next(iter(SourceRows(self.table.slice(row, 1))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceRows) and self.table.equals(other.table)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def take(self, rows: NDArray[np.integer]) -> "SourceRows":
        """Copy of the rows with these indices, in their order."""
        return SourceRows(self.table.take(pa.array(rows)).combine_chunks())


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
