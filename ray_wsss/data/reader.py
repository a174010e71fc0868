"""Random access to the rows of a folder of Parquet shards, in bounded memory."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_wsss.data.schema import unknown_as_null
from ray_wsss.errors import UserError
from ray_wsss.storage import filesystem_of, is_remote, key_of

_MAX_OPEN_FILES = 64


class ShardReader:
    """Reads rows by index from all ``DATASET/shards/*.parquet`` (else ``DATASET/*.parquet``), in name order.

    Reading a row reads the requested columns of its whole row group, so read neighbouring rows together if
    the disk is slow. Columns that were read are cached, up to ``cache_bytes``; the least recently used are
    dropped first. A pickled reader carries no open files and no cache. Not safe for several threads.

    Raises:
        UserError: the folder has no shards or no rows, or a shard is damaged.
    """

    def __init__(self, dataset: Path, cache_bytes: int = 256 * 2**20) -> None:
        self.dataset = dataset
        self.cache_bytes = cache_bytes
        self._forget()
        self._paths = shard_paths(self.dataset)
        # One entry per row group: (file, group in file). ``_ends`` has the number of rows up to its end.
        self._groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        bytes_per_group = [1]
        for file, path in enumerate(self._paths):
            footer = open_shard(path).metadata
            groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
            self._groups += [(file, group) for group in range(len(groups))]
            sizes += [group.num_rows for group in groups]
            bytes_per_group += [group.total_byte_size for group in groups]
        self.largest_group_bytes = max(bytes_per_group)
        self._ends = list(accumulate(sizes))
        if not self._ends or not self._ends[-1]:
            raise UserError(f"{self.dataset} has only shards without a row; expected at least one image")

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def image_ids(self) -> list[str]:
        """The image ids in row order."""
        if self._image_ids is None:
            columns = [self._column(group, "image_id") for group in range(len(self._groups))]
            self._image_ids = [image_id for column in columns for image_id in column.to_pylist()]
        return self._image_ids

    def index_of(self, image_id: str) -> int:
        """Index of an image's row. Raises KeyError if the image has none."""
        if self._index is None:
            self._index = {name: row for row, name in enumerate(self.image_ids)}
        return self._index[image_id]

    def require(self, image_ids: list[str], dataset: Path, stage: str) -> None:
        """Raise UserError unless all these images of ``dataset`` have a row; the message names ``stage``."""
        known = set(self.image_ids)
        missing = [image_id for image_id in image_ids if image_id not in known]
        if missing:
            raise UserError(
                f"{self.dataset} lacks {len(missing)} of the {len(image_ids)} images of {dataset}, the first "
                f"is {missing[0]}; run 'ray-wsss {stage}' on this data set"
            )

    def group_of(self, i: int) -> int:
        """Index of the row group that row ``i`` is in. Raises IndexError if there is no such row."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return bisect_right(self._ends, i)

    def read(self, i: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Read row ``i`` as Python values (bytes, str, int, list): all columns, or those named.

        ``image_labels`` is None for unknown labels, whichever version wrote the data set.

        Raises:
            IndexError: there is no such row.
            KeyError: there is no such column.
            UserError: the shard is damaged.
        """
        group = self.group_of(i)
        offset = i - (self._ends[group - 1] if group else 0)
        names = columns if columns is not None else self._file(self._groups[group][0]).schema_arrow.names
        return {name: self._column(group, name)[offset].as_py() for name in names}

    def _column(self, group: int, name: str) -> pa.ChunkedArray:
        key = (group, name)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        file_index, group_in_file = self._groups[group]
        file = self._file(file_index)
        if name not in file.schema_arrow.names:
            raise KeyError(f"{self._paths[file_index]} has no column '{name}'")
        # Without threads: Arrow's pool does not survive the fork of a DataLoader worker.
        try:
            rows = file.read_row_group(group_in_file, columns=[name], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self._paths[file_index]} is damaged ({error}); write it again") from error
        column = unknown_as_null(rows).column(0)
        self._cache[key] = column
        self._cached_bytes += column.nbytes
        while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return column

    def _file(self, index: int) -> pq.ParquetFile:
        if index not in self._files:
            if len(self._files) >= _MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[index] = open_shard(self._paths[index])
        self._files.move_to_end(index)
        return self._files[index]

    def _forget(self) -> None:
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._cache: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()
        self._cached_bytes = 0
        self._image_ids: list[str] | None = None
        self._index: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("dataset", "cache_bytes", "_paths", "_groups", "_ends", "largest_group_bytes")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


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
