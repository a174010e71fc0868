"""Random access to the rows of a folder of Parquet shards, in bounded memory."""

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_wsss.data.piece_streams import PIECE_BYTES, PieceStreams, column_bytes, rows_per_piece
from ray_wsss.data.schema import unknown_as_null
from ray_wsss.errors import UserError
from ray_wsss.storage import FoundFile, filesystem_of, find_files, is_remote, key_of, read_side_by_side

_MAX_OPEN_FILES = 64
_SETTLED_NS = 2 * 10**9
"""Age of a file, in nanoseconds, above which a change of it would show in the time of its last change."""


@dataclass(frozen=True, eq=False)
class _Index:
    """What the footers of a folder's shards say; readers share it, so nobody may change it."""

    paths: list[Path]
    groups: list[tuple[int, int]]
    """One entry per row group: (file, group in file)."""
    ends: list[int]
    """Number of rows up to the end of each group."""
    piece_rows: list[int]
    """Number of rows of a piece in each group: all of them, unless the group is large."""
    piece_bytes: int
    """Bytes of a piece; 95 % of the groups have none that is larger."""


class ShardReader:
    """Reads rows by index from all ``DATASET/shards/*.parquet`` (else ``DATASET/*.parquet``), in name order.

    Several folders, such as the labels of a data set's parts, are read as one: row after row, in the order in
    which they are given. No image may be in two of them.

    Reading a row reads the requested columns of its whole row group, or of a piece of at most `PIECE_BYTES`
    if the group is larger. So read neighbouring rows together, and pieces of a group in ascending order.
    Columns that were read are cached, up to ``cache_bytes``; the least recently used are dropped first. A
    pickled reader carries no open files and no cache. Not safe for several threads.

    Args:
        dataset: the folder, or folders.

    Raises:
        UserError: a folder has no shards or no rows, or a shard is damaged.
    """

    def __init__(self, dataset: Path | Sequence[Path], cache_bytes: int = 256 * 2**20) -> None:
        self.folders = folders_of(dataset)
        self.cache_bytes = cache_bytes
        self._forget()
        self._index = _open_index(self.folders)

    def __len__(self) -> int:
        return self._index.ends[-1]

    @property
    def dataset(self) -> str:
        """Name of the folder, or names of the folders, for messages."""
        return named(self.folders)

    @property
    def image_ids(self) -> list[str]:
        """The image ids in row order."""
        if self._image_ids is None:
            columns = [self._column(group, "image_id") for group in range(len(self._index.groups))]
            self._image_ids = [image_id for column in columns for image_id in column.to_pylist()]
        return self._image_ids

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the first shard."""
        return list(self._file(0).schema_arrow.names)

    def index_of(self, image_id: str) -> int:
        """Index of an image's row. Raises KeyError if the image has none."""
        if self._row_of is None:
            self._row_of = {name: row for row, name in enumerate(self.image_ids)}
        return self._row_of[image_id]

    def find(self, image_id: str, columns: Sequence[str] | None = None) -> dict[str, Any] | None:
        """The row of an image as `read` returns it; None if the image has none."""
        try:
            row = self.index_of(image_id)
        except KeyError:
            return None
        return self.read(row, columns)

    def require(self, image_ids: list[str], dataset: Path, stage: str) -> None:
        """Raise UserError unless all these images of ``dataset`` have a row; the message names ``stage``."""
        known = set(self.image_ids)
        missing = [image_id for image_id in image_ids if image_id not in known]
        if missing:
            raise UserError(
                f"{self.dataset} lacks {len(missing)} of the {len(image_ids)} images of {dataset}, the first "
                f"is {missing[0]}; run 'ray-wsss {stage}' on this data set"
            )

    @property
    def piece_bytes(self) -> int:
        """Bytes of a piece, as its file holds it; 95 % of the row groups have none that is larger."""
        return self._index.piece_bytes

    def places_of(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row group of each row, and the piece of that group that the row is in, both (N,) and from 0."""
        index, wanted = self._index, np.asarray(rows, np.int64)
        groups = np.searchsorted(index.ends, wanted, side="right")
        offsets = wanted - np.array([0, *index.ends])[groups]
        return groups, offsets // np.array(index.piece_rows)[groups]

    def read(self, i: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Read row ``i`` as Python values (bytes, str, int, list): all columns, or those named.

        ``image_labels`` is None for unknown labels, whichever version wrote the data set.

        Raises:
            IndexError: there is no such row.
            KeyError: there is no such column.
            UserError: the shard is damaged.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        index = self._index
        group = bisect_right(index.ends, i)
        offset = i - (index.ends[group - 1] if group else 0)
        names = columns if columns is not None else self._file(index.groups[group][0]).schema_arrow.names
        return {name: self._value(group, name, offset) for name in names}

    def _value(self, group: int, name: str, offset: int) -> Any:
        rows = self._index.piece_rows[group]
        file_index, group_in_file = self._index.groups[group]
        # Of a large group, only the columns that make it large are read in pieces.
        cut = rows < self._rows_in(group) and (
            (group, name, offset // rows) in self._cache
            or column_bytes(self._file(file_index), group_in_file, name) > PIECE_BYTES
        )
        if not cut:
            return self._column(group, name)[offset].as_py()
        return self._column(group, name, offset // rows)[offset % rows].as_py()

    def _rows_in(self, group: int) -> int:
        return self._index.ends[group] - (self._index.ends[group - 1] if group else 0)

    def _column(self, group: int, name: str, piece: int | None = None) -> pa.ChunkedArray | pa.Array:
        """A column of a row group, or of a piece of one."""
        key = (group, name, piece)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        column = self._cache[key] = self._load(group, name, piece)
        self._cached_bytes += column.nbytes
        while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return column

    def _load(self, group: int, name: str, piece: int | None) -> pa.ChunkedArray | pa.Array:
        file_index, group_in_file = self._index.groups[group]
        path, file = self._index.paths[file_index], self._file(file_index)
        if name not in file.schema_arrow.names:
            raise KeyError(f"{path} has no column '{name}'")
        try:
            if piece is not None:
                return self._streams.read(path, group_in_file, name, piece, self._index.piece_rows[group])
            # Without threads: Arrow's pool does not survive the fork of a DataLoader worker.
            rows = file.read_row_group(group_in_file, columns=[name], use_threads=False)
            return unknown_as_null(rows).column(0)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); write it again") from error

    def _file(self, index: int) -> pq.ParquetFile:
        if index not in self._files:
            if len(self._files) >= _MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[index] = open_shard(self._index.paths[index])
        self._files.move_to_end(index)
        return self._files[index]

    def _forget(self) -> None:
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._streams = PieceStreams(open_shard)
        self._cache: OrderedDict[tuple[int, str, int | None], pa.ChunkedArray | pa.Array] = OrderedDict()
        self._cached_bytes = 0
        self._image_ids: list[str] | None = None
        self._row_of: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folders", "cache_bytes", "_index")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _open_index(folders: Sequence[Path]) -> _Index:
    """The index of folders; read again only if a shard came, went or changed since this process read it."""
    files = tuple(file for folder in folders for file in _shard_files(folder))
    newest_ns = max(file.changed_ns for _, file in files)
    settled = time.time_ns() - newest_ns > _SETTLED_NS
    index = _read_index(files) if settled else _read_index.__wrapped__(files)
    if not index.ends or not index.ends[-1]:
        raise UserError(f"{folders[0]} has only shards without a row; expected at least one image")
    return index


def _shard_files(folder: Path) -> list[tuple[Path, FoundFile]]:
    paths = shard_paths(folder)
    found = find_files(paths[0].parent)
    return [(path, found.get(path.name, FoundFile(0, 0))) for path in paths]


@lru_cache(maxsize=8)
def _read_index(files: tuple[tuple[Path, FoundFile], ...]) -> _Index:
    paths = [path for path, _ in files]
    groups: list[tuple[int, int]] = []
    rows: list[int] = []
    sizes: list[int] = []
    for file, (file_rows, file_sizes) in enumerate(read_side_by_side(_read_footer, paths)):
        groups += [(file, group) for group in range(len(file_rows))]
        rows += file_rows
        sizes += file_sizes
    piece_rows = [rows_per_piece(count, size) for count, size in zip(rows, sizes)]
    piece_bytes = [size * part // max(1, count) for size, part, count in zip(sizes, piece_rows, rows)]
    return _Index(
        paths=paths,
        groups=groups,
        ends=np.cumsum(rows).tolist(),
        piece_rows=piece_rows,
        piece_bytes=max(1, int(np.quantile(piece_bytes or [0], 0.95, method="higher"))),
    )


def _read_footer(path: Path) -> tuple[list[int], list[int]]:
    """Number of rows and of bytes of every row group of a shard."""
    with open_shard(path) as file:
        footer = file.metadata
    groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
    return [group.num_rows for group in groups], [group.total_byte_size for group in groups]


def folders_of(dataset: Path | Sequence[Path]) -> tuple[Path, ...]:
    """The folder or folders that a `ShardReader` reads as one."""
    return tuple(dataset) if isinstance(dataset, Sequence) else (dataset,)


def named(dataset: Path | Sequence[Path]) -> str:
    """Name of a folder for messages; of several, those of the first two, and the number of the others."""
    first, *others = map(str, folders_of(dataset))
    if len(others) < 2:
        return " and ".join([first, *others])
    return f"{first}, {others[0]} and {len(others) - 1} more"


def shard_paths(dataset: Path) -> list[Path]:
    """Paths of the shards in a folder, in name order. Raises UserError if there are none."""
    if not dataset.is_dir():
        raise UserError(f"{dataset} is not a folder; expected one with Parquet shards")
    folder = dataset / "shards" if (dataset / "shards").is_dir() else dataset
    paths = sorted(p for p in folder.glob("*.parquet") if p.name != "errors.parquet")
    if not paths:
        raise UserError(f"{folder} holds no Parquet shards; expected the output of a finished stage")
    return paths


def failed_images(folder: Path) -> set[str]:
    """Ids of the images that a stage failed on, from its ``errors.parquet``; empty without that file."""
    path = folder / "errors.parquet"
    if not path.exists():
        return set()
    with open_shard(path) as file:
        return set(file.read(columns=["image_id"])["image_id"].to_pylist())


def open_shard(path: Path) -> pq.ParquetFile:
    """Open a Parquet file. Raises UserError if it is damaged or missing."""
    try:
        return open_parquet(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); write it again") from None


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file; from a store, only the parts that are read are fetched."""
    if not is_remote(path):
        return pq.ParquetFile(path, memory_map=True)
    # Without read-ahead: Parquet asks for whole column chunks, and reading ahead would fetch more than that.
    source = filesystem_of(path).open(key_of(path), "rb", cache_type="none")
    return pq.ParquetFile(source, pre_buffer=True)
