"""Reading large columns of Parquet row groups piece by piece, in bounded memory."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_wsss.storage import is_remote

PIECE_BYTES = 4 * 2**20
"""Bytes of a row group above which it is read in pieces, and most bytes of a piece of several rows."""
_MAX_STREAMS = 80
"""Most columns that are read at a time: one for each piece that training draws from, and some to spare."""
_MAX_FETCHED_BYTES = 2**30
"""Most bytes of columns that are being read from a store: Arrow fetches a column of a group as a whole."""


@dataclass
class _Stream:
    batches: Iterator[pa.RecordBatch]
    fetched_bytes: int
    """Bytes that the stream holds in memory; 0 for a file of this machine, which is mapped into memory."""


class PieceStreams:
    """Columns of row groups that are being read, each up to some piece.

    Parquet can't be read from the middle of a row group. A column whose pieces are asked for in ascending
    order is read once. An earlier piece takes reading it from its beginning again, in another stream.

    Args:
        open_file: opens a Parquet file.
    """

    def __init__(self, open_file: Callable[[Path], pq.ParquetFile]) -> None:
        self._open = open_file
        # Keys end with the piece that the stream reads next.
        self._streams: OrderedDict[tuple[Path, int, str, int], _Stream] = OrderedDict()

    def read(self, path: Path, group: int, name: str, piece: int, rows: int) -> pa.Array:
        """Read a piece of column ``name`` in row group ``group``.

        Args:
            piece: number of the piece, from 0.
            rows: number of rows of a piece, the same in every call for this group.

        Raises:
            pa.ArrowException, OSError: the file is damaged.
        """
        before = [key for key in self._streams if key[:3] == (path, group, name) and key[3] <= piece]
        at = max(before, key=lambda key: key[3], default=(path, group, name, 0))
        stream = self._streams.pop(at, None) or self._start(path, group, name, rows)
        for _ in range(at[3], piece):
            next(stream.batches)
        column = next(stream.batches).column(0)
        self._streams[path, group, name, piece + 1] = stream
        while len(self._streams) > _MAX_STREAMS or self._fetched_bytes() > _MAX_FETCHED_BYTES:
            self._streams.popitem(last=False)
        return column

    def _start(self, path: Path, group: int, name: str, rows: int) -> _Stream:
        file = self._open(path)
        # Without threads: Arrow's pool does not survive the fork of a DataLoader worker.
        batches = file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False)
        return _Stream(batches, column_bytes(file, group, name) if is_remote(path) else 0)

    def _fetched_bytes(self) -> int:
        return sum(stream.fetched_bytes for stream in self._streams.values())


def rows_per_piece(rows: int, size: int) -> int:
    """Rows of a piece of a row group of ``rows`` rows and ``size`` bytes: all of them if it is small."""
    return max(1, rows // max(1, -(-size // PIECE_BYTES)))


def column_bytes(file: pq.ParquetFile, group: int, name: str) -> int:
    """Bytes of a column in a row group; 0 for a column of lists or structures."""
    columns = file.metadata.row_group(group)
    found = (columns.column(k) for k in range(columns.num_columns))
    return sum(column.total_compressed_size for column in found if column.path_in_schema == name)
