"""Bytes of images, wherever they are: in a file, in a part of a file, in a table, or behind a URI."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from ray_wsss.data.images import ImageError
from ray_wsss.data.schema import SourceRow
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
        for row in rows:
            if row.error is None and "://" in row.path and _place(row) not in self._coming:
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
        coming = self._coming.get(_place(row))
        return coming.result() if coming is not None else _read(row)

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
