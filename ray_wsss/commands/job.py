"""Commands that run as a submitted job, in a folder of its own that nobody finds again."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ray_wsss.errors import UserError

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray's job server tells a job what it was submitted with."""
_WRITTEN = ("out", "json")
"""Flags that say where results go."""


def runs_in_a_copy() -> bool:
    """Whether this process is a submitted job whose working directory was uploaded with it."""
    job = json.loads(os.environ.get(_JOB_CONFIG) or "{}")
    return bool(job.get("runtime_env", {}).get("working_dir"))


def refuse_relative_paths(command: Any, copied: Path | None) -> None:
    """Raise UserError for a relative path that is to be written, or that the job's folder will not have.

    Args:
        command: parsed command of the job.
        copied: folder that is uploaded, or its copy; None: nothing is uploaded.
    """
    for name, value in vars(command).items():
        for path in _paths_in(value):
            is_there = copied is not None and name not in _WRITTEN and (copied / path).exists()
            if not path.is_absolute() and not is_there:
                raise UserError(
                    f"--{name} is {path}, and a job runs in a folder of its own; expected an absolute path "
                    "that all nodes share, or a URI"
                )


def _paths_in(value: Any) -> Iterator[Path]:
    """The path or paths that a flag was given."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple):
        for entry in cast(tuple[Any, ...], value):
            yield from _paths_in(entry)
