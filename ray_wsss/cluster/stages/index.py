"""Index of containers on Ray: one task for each file."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ray_wsss.cluster.connect import ray_session
from ray_wsss.config.resources import Cluster
from ray_wsss.errors import UserError

_AHEAD = 256
"""Most tasks that are started before their results are taken."""


def map_files_on(cluster: Cluster) -> Callable[[Callable[[str], Any], Sequence[str]], Iterator[Any]]:
    """A function like `map` that applies a function to paths in Ray's tasks, in order of the paths.

    It raises a UserError that the function raises.
    """

    def map_files(function: Callable[[str], Any], paths: Sequence[str]) -> Iterator[Any]:
        with ray_session(cluster.address, verbose=cluster.verbose):
            task = ray.remote(function_of).options(num_cpus=1)
            coming = []
            for started, path in enumerate(paths):
                coming.append(task.remote(function, path))
                if started >= _AHEAD:
                    yield _result(coming.pop(0))
            yield from map(_result, coming)

    return map_files


def function_of(function: Callable[[str], Any], path: str) -> Any:
    """Call ``function``; a task, since Ray takes no `functools.partial` as one."""
    return function(path)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
