"""Index of containers on Ray: one task for each file."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from ray_wsss.cluster.connect import own_errors

_AHEAD = 256
"""Most tasks that are started before the result of the first is taken."""


def map_on_ray(function: Callable[[str], Any], paths: Sequence[str]) -> Iterator[Any]:
    """Apply a function to each path in a task of the Ray that is connected; results in order of the paths.

    Raises:
        Exception: as ``function`` raised it.
    """
    task = ray.remote(_call)
    coming = [task.remote(function, path) for path in paths[:_AHEAD]]
    for at in range(len(paths)):
        if at + _AHEAD < len(paths):
            coming.append(task.remote(function, paths[at + _AHEAD]))
        with own_errors():
            found = ray.get(coming.pop(0))
        yield found


def _call(function: Callable[[str], Any], path: str) -> Any:
    """A task of its own, since Ray takes no `functools.partial` as one."""
    return function(path)
