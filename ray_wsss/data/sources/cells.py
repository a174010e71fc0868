"""Images in the cells of tables: Parquet files, and folders that Hugging Face's `datasets` saved."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_wsss.data.images import ImageError
from ray_wsss.data.reader import open_parquet
from ray_wsss.errors import UserError

_ROWS_AT_A_TIME = 64


def read_cells(path: Path, column: str, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """The image in each of some rows, with the number of the row; None for a cell without bytes.

    Args:
        path: Parquet file, or folder that `datasets` saved.
        column: column of bytes, or of structs with a field ``bytes``.
        rows: numbers of rows, from 0.

    Raises:
        ImageError: the table is damaged.
    """
    wanted = sorted(set(rows))
    try:
        batches = _saved_batches(path, column, wanted) if path.is_dir() else _batches(path, column, wanted)
        for numbers, cells in batches:
            yield from zip(numbers, map(_bytes_of, cells))
    except (pa.ArrowException, OSError, ValueError, UserError) as error:
        raise ImageError(f"{path.name} can't be read ({error})") from error


def load_saved(path: Path) -> Any:
    """Open a folder of ``Dataset.save_to_disk``.

    Raises:
        UserError: it is damaged, or `datasets` isn't installed.
    """
    try:
        from datasets import load_from_disk
    except ModuleNotFoundError:
        raise UserError(
            f'{path} needs the package datasets, which is not installed: pip install -e ".[huggingface]"'
        ) from None
    try:
        return load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is not a readable folder of datasets ({reason})") from None


_opened = lru_cache(maxsize=4)(load_saved)


def _batches(path: Path, column: str, wanted: Sequence[int]) -> Iterator[tuple[list[int], list[Any]]]:
    """Numbers and cells of the wanted rows; of other row groups nothing is read."""
    with open_parquet(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            here = [row for row in wanted if first <= row < end]
            if here:
                yield from _from_group(file, group, column, here, first)
            first = end


def _from_group(
    file: Any, group: int, column: str, here: Sequence[int], first: int
) -> Iterator[tuple[list[int], list[Any]]]:
    left = list(here)
    for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[column], use_threads=False):
        numbers = [row for row in left if row < first + len(batch)]
        yield numbers, [batch.column(0)[row - first].as_py() for row in numbers]
        left = left[len(numbers) :]
        first += len(batch)
        if not left:
            return


def _saved_batches(path: Path, column: str, wanted: Sequence[int]) -> Iterator[tuple[list[int], list[Any]]]:
    saved = _opened(path).select_columns([column]).with_format("arrow")
    for row in wanted:
        yield [row], saved[row][column].to_pylist()


def _bytes_of(cell: Any) -> bytes | None:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else None
