"""Paths on this machine, on a share that all nodes mount, or in an object store by URI (s3://, gs://...).

A path in a store is a `upath.UPath`, which has the methods of `pathlib.Path`; ``Path`` in annotations means
either. This module hides the differences: a store has no folders, no links, no renaming and no appending,
but a file that is written to it appears whole or not at all.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from filelock import FileLock

from ray_wsss.errors import UserError

if TYPE_CHECKING:
    AnyPath = Path
else:  # tests check types at run time, and a UPath is not a Path
    AnyPath = Any

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_CLIENTS = ("aiohttp", "botocore", "gcsfs", "google", "s3fs")
"""Packages whose errors mean that a store can't be reached or denies access."""
_READS_AT_A_TIME = 32
_READS_PLANNED = 1024
"""Most reads queued at a time; a run of a million parts would otherwise hold a million in memory."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def parse_path(text: str) -> Path:
    """Path from a user's or a file's text: ``a/b``, ``file:///a/b``, ``s3://bucket/a/b``.

    Raises:
        UserError: the scheme is unknown or its package isn't installed, or the URI contains credentials.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme in ("file", "local"):
        return Path(rest)
    if "@" in rest.partition("/")[0]:
        # Credentials in a path would be written into manifests and logs.
        raise UserError(
            f"{scheme}://...@... has credentials in it; expected them in the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine"
        )
    # Imported here because only URIs need them, and they take a third of the command line's start-up time.
    from fsspec.registry import get_filesystem_class
    from upath import UPath

    try:
        get_filesystem_class(scheme)
    except ValueError:
        raise UserError(
            f"{text}: '{scheme}' is not a known storage scheme; expected s3://, gs:// or a path"
        ) from None
    except ImportError:
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'ray-wsss[{extra}]'" if extra else f"install fsspec's package for {scheme}"
        raise UserError(f"{text} needs a package that is not installed: {how}") from None
    # Other processes write there too, so a cached listing may be out of date.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def is_remote(path: Path) -> bool:
    """Whether a path lies in an object store."""
    return not isinstance(path, Path)


def why_unreachable(error: BaseException) -> str | None:
    """Message for the user about an error that a store's client raised; None for any other error."""
    if type(error).__module__.partition(".")[0] not in _CLIENTS:
        return None
    return f"the storage can't be used: {next(iter(str(error).splitlines()), type(error).__name__)}"


def why_unreadable(error: OSError, path: str) -> str:
    """Message that says why the file ``path`` can't be read."""
    if isinstance(error, FileNotFoundError):
        return f"no such file: {Path(error.filename or path).name}"
    return f"can't be read: {error.strerror or error}"


def printable(text: str) -> str:
    """Escape the bytes of a file name that are not UTF-8, which Parquet's strings can't hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def filesystem_of(path: Path) -> Any:
    """The fsspec file system of a path in a store."""
    return cast(Any, path).fs


def key_of(path: Path) -> str:
    """A path in a store as its fsspec file system takes it, without the scheme."""
    return cast(Any, path).path


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; the file then replaces ``path``, unless the block raises."""
    if is_remote(path):
        with TemporaryDirectory(prefix="ray_wsss_") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            filesystem_of(path).put_file(str(temporary), key_of(path))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name of ``path`` is left out, since it may already have the greatest length allowed.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: object, path: Path, *, ascii_only: bool = False) -> None:
    """Write ``content`` as JSON, atomically.

    Args:
        ascii_only: escape all other characters, for content with file names that are not UTF-8.
    """
    text = json.dumps(content, indent=2, ensure_ascii=ascii_only)
    with replace_atomically(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """Yield a file on this machine with the content of ``path``: ``path`` itself, or a temporary copy."""
    if not is_remote(path):
        yield path
        return
    with TemporaryDirectory(prefix="ray_wsss_") as folder:
        copy = Path(folder) / path.name
        filesystem_of(path).get_file(key_of(path), str(copy))
        yield copy


def cached_file(path: Path, cache: Path) -> Path:
    """Lasting local copy, below ``cache``, of a file in a store; fetched again if the file changed.

    A local ``path`` is returned as it is.
    """
    if not is_remote(path):
        return path
    file_system, source = filesystem_of(path), key_of(path)
    key = hashlib.sha256(f"{path}\0{file_system.ukey(source)}".encode()).hexdigest()
    copy = cache / key[:16] / path.name
    fetch_once(copy, lambda temporary: file_system.get_file(source, str(temporary)))
    return copy


def fetch_once(path: Path, fetch: Callable[[Path], None]) -> None:
    """Make a file of this machine unless it is there; other processes wait meanwhile, and reuse it.

    ``fetch`` writes to the path it gets; if it raises, no file is left but a lock file.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            with replace_atomically(path) as temporary:
                fetch(temporary)


def read_head(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of a file; no more than these are fetched from a store."""
    if is_remote(path):
        return filesystem_of(path).cat_file(key_of(path), start=0, end=count)
    with path.open("rb") as file:
        return file.read(count)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, on this machine or in a store; ``target`` appears whole or not at all."""
    with local_file(source) as ours, replace_atomically(target) as temporary:
        shutil.copyfile(ours, temporary)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or lies below it, after following links."""
    return is_remote(path) == is_remote(folder) and path.resolve().is_relative_to(folder.resolve())


def drop_leftovers(folder: Path) -> None:
    """Remove half-written files of killed writers below ``folder``; in a store there are none."""
    if not is_remote(folder):
        for path in folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents; does nothing in a store, which has no folders."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and everything in it, if it exists."""
    if is_remote(path):
        if path.exists():
            filesystem_of(path).rm(key_of(path), recursive=True)
    elif path.exists():
        shutil.rmtree(path)


@dataclass(frozen=True)
class FoundFile:
    """A file's entry in a listing."""

    size: int
    """Size in bytes."""
    changed_ns: int
    """Time of the last change, in nanoseconds since 1970."""


def find_files(root: Path) -> dict[str, FoundFile]:
    """Every file below ``root``, by its path relative to ``root`` with forward slashes.

    Linked folders are not entered. A broken link counts as a file of size 0. In a store this takes one
    listing, where asking for each file would take one request per file.
    """
    if is_remote(root):
        folder = key_of(root).rstrip("/")
        found = filesystem_of(root).find(folder, detail=True)
        return {name.removeprefix(f"{folder}/"): _found_remote(info) for name, info in found.items()}
    names = (path for path in root.rglob("*") if not path.is_dir())
    return {path.relative_to(root).as_posix(): _found(path) for path in names}


def _found_remote(info: dict[str, Any]) -> FoundFile:
    keys = ("LastModified", "mtime", "updated", "last_modified")  # names in S3, Google Cloud Storage, others
    when: Any = next((info[key] for key in keys if key in info), 0)
    when = datetime.fromisoformat(when) if isinstance(when, str) else when
    seconds = when.timestamp() if isinstance(when, datetime) else float(when)
    return FoundFile(int(info.get("size") or 0), int(seconds * 1e9))


def _found(path: Path) -> FoundFile:
    try:
        found = path.stat()
    except OSError:
        return FoundFile(0, 0)
    return FoundFile(found.st_size, found.st_mtime_ns)


@contextmanager
def growing_folder(path: Path, every_s: float = 10) -> Iterator[Path]:
    """Yield a local folder for files that grow, such as logs.

    The folder is ``path`` itself, unless ``path`` is in a store: then it is a temporary folder, whose changed
    files are uploaded to ``path``. Files that are already in the store are not fetched.

    Args:
        every_s: seconds between uploads of changed files; the last upload comes at the end of the block.
    """
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with TemporaryDirectory(prefix="ray_wsss_") as folder:
        ended, seen = Event(), dict[str, FoundFile]()

        def upload() -> None:
            last = False
            while not last:
                last = ended.wait(every_s)
                _upload_changed(Path(folder), path, seen)

        thread = Thread(target=upload, daemon=True)
        thread.start()
        try:
            yield Path(folder)
        finally:
            ended.set()
            thread.join()


def _upload_changed(folder: Path, target: Path, seen: dict[str, FoundFile]) -> None:
    for name, found in find_files(folder).items():
        if seen.get(name) != found:
            copy_file(folder / name, target / name)
            seen[name] = found


def read_side_by_side(read: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """Apply ``read`` to each item, in threads, and yield the results in order of the items.

    A store answers many small reads at once as fast as one.
    """
    with ThreadPoolExecutor(_READS_AT_A_TIME) as pool:
        for first in range(0, len(items), _READS_PLANNED):
            yield from pool.map(read, items[first : first + _READS_PLANNED])
