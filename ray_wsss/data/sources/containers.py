"""Files that hold many images: which ones a user means, and what their images are called."""

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ray_wsss.errors import UserError
from ray_wsss.storage import find_files, parse_path, read_side_by_side

_R = TypeVar("_R")
MapFiles = Callable[[Callable[[str], Any], Sequence[str]], Iterable[Any]]
"""Applies a function to each of some paths, wherever it runs, and gives the results in their order."""


def map_here(function: Callable[[str], _R], paths: Sequence[str]) -> Iterator[_R]:
    """Apply a function to each path in threads of this process."""
    return read_side_by_side(function, paths)


def find_containers(patterns: Sequence[str], suffix: str) -> list[str]:
    """Absolute paths or URIs that are meant by files, folders, or patterns such as ``shards/*.tar``; sorted.

    Args:
        suffix: suffix of the files in folders, such as ".tar".

    Raises:
        UserError: nothing fits a pattern.
    """
    found: list[str] = []
    for pattern in patterns:
        fitting = _fitting(pattern, suffix)
        if not fitting:
            raise UserError(f"{pattern} fits no file; expected {suffix} files, a folder or a pattern of them")
        found += fitting
    return sorted(dict.fromkeys(found))


def _fitting(pattern: str, suffix: str) -> list[str]:
    path = parse_path(pattern)
    if path.is_file():
        return [str(path.absolute())]
    if path.is_dir():
        names = sorted(name for name in find_files(path) if name.lower().endswith(suffix))
        return [str((path / name).absolute()) for name in names]
    wild = next((k for k, part in enumerate(path.parts) if any(sign in part for sign in "*?[")), None)
    if wild is None:
        return []
    root = path.parents[len(path.parts) - wild - 1]
    rest = posixpath.join(*path.parts[wild:])
    return [str(p.absolute()) for p in root.glob(rest) if p.is_file()]


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without what all of them begin with, and without suffix: unique starts for names of images."""
    folder = posixpath.commonpath([posixpath.dirname(path) for path in paths]) if paths else ""
    return [str(Path(path.removeprefix(folder).lstrip("/")).with_suffix("")) for path in paths]
