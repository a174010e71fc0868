"""Bytes of images, wherever they are: in a file, in a part of a file, in a table, or behind a URI."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from ray_wsss.data.images import ImageError
from ray_wsss.data.schema import SourceRow
from ray_wsss.data.sources.cells import read_cells
from ray_wsss.data.sources.locations import WEB_SCHEMES
from ray_wsss.data.sources.web import WebClient
from ray_wsss.storage import filesystem_of, is_remote, key_of, parse_path, why_unreachable

REQUESTS_PER_HOST = 16
"""Default for the most requests to one host at a time."""


class Contents:
    """Reads the images of some rows. Those behind URIs are fetched ahead, several at a time.

    Used as a context, which ends the requests that are still waiting.

    Args:
        rows: rows that will be read, most likely in this order.
        requests_per_host: most requests to one host, or bucket, at a time.
    """

    def __init__(self, rows: Sequence[SourceRow], requests_per_host: int = REQUESTS_PER_HOST) -> None:
        self._web = WebClient(requests_per_host)
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._coming: dict[Any, Future[bytes]] = {}
        self._cells: dict[tuple[str, str], list[int]] = {}
        self._found: dict[Any, bytes | None] = {}
        for row in rows:
            if row.cell is not None and row.error is None:
                column, number = row.cell
                self._cells.setdefault((row.path, column), []).append(number)
            elif row.error is None and "://" in row.path and _place(row) not in self._coming:
                pool = self._pool_of(_host(row.path), requests_per_host)
                self._coming[_place(row)] = pool.submit(self._fetch, row)

    def __enter__(self) -> "Contents":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        self._web.close()

    def read(self, row: SourceRow) -> bytes:
        """The image of a row. Raises OSError, or ImageError with the reason, if it can't be read."""
        if row.cell is not None:
            return self._read_cell(row, *row.cell)
        coming = self._coming.get(_place(row))
        return coming.result() if coming is not None else _read(row)

    def _read_cell(self, row: SourceRow, column: str, number: int) -> bytes:
        """The rows' cells of a table are read together, the first time that one is asked for."""
        wanted = self._cells.pop((row.path, column), ())
        for found, data in read_cells(parse_path(row.path), column, wanted) if wanted else ():
            self._found[row.path, column, found] = data
        data = self._found.pop((row.path, column, number), None)
        if data is None:
            raise ImageError(f"row {number} of {parse_path(row.path).name} holds no image that can be read")
        return data

    def _pool_of(self, host: str, requests: int) -> ThreadPoolExecutor:
        if host not in self._pools:
            self._pools[host] = ThreadPoolExecutor(requests)
        return self._pools[host]

    def _fetch(self, row: SourceRow) -> bytes:
        if row.path.partition("://")[0].lower() in WEB_SCHEMES:
            return self._web.get(row.path)
        return _explained(lambda: _read(row))


def _read(row: SourceRow) -> bytes:
    path = parse_path(row.path)
    if row.byte_range is None:
        return path.read_bytes()
    offset, size = row.byte_range
    if is_remote(path):
        data: bytes = filesystem_of(path).cat_file(key_of(path), start=offset, end=offset + size)
    else:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    if len(data) != size:
        raise ImageError(f"{path.name} ends inside the image, which has {size} bytes from {offset} on")
    return data


def _explained(read: Callable[[], bytes]) -> bytes:
    """Call ``read``; an error of a store's client becomes an `ImageError`."""
    try:
        return read()
    except OSError:
        raise
    except Exception as error:
        reason = why_unreachable(error)
        if reason is None:
            raise
        raise ImageError(reason) from error


def _place(row: SourceRow) -> Any:
    return row.path, row.byte_range, row.cell


def _host(uri: str) -> str:
    try:
        return urlsplit(uri).netloc.lower()
    except ValueError:  # such as half an IPv6 address
        return ""
