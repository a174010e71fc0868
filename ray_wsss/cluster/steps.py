"""Steps that build on one another, as Ray tasks: each starts as soon as those it needs are done."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import ray

from ray_wsss.cluster.connect import own_errors
from ray_wsss.console import logged_to, progress_told_to
from ray_wsss.memory import keep_freed_memory
from ray_wsss.storage import make_folder, write_json

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
"""Seconds between two looks at the progress of the steps, and least seconds between two notes of it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of several."""

    name: str
    """Name without spaces; the files of the step have it too."""
    what: str
    """Description of the step, in words."""
    work: str
    """Function that does it, as ``module:function``. Only the process that runs the step imports it."""
    needs: Sequence[str] = ()
    """Names of the steps that must be done before."""
    takes_results: bool = False
    """True if the function also gets the results of the steps that are done, by name."""
    threads: int = 1
    """torch threads: 1 if other steps run beside it."""
    weight: float = 1
    """About how many seconds it takes, in relation to the other steps; for the time left."""


@dataclass(kw_only=True)
class StepState:
    """How far a step is."""

    step: Step
    began: float | None = None
    """`time.monotonic` at the start; None before."""
    seconds: float | None = None
    """Duration; None until the step is done."""
    done: int = 0
    """Images or iterations that are done, of ``total``."""
    total: int = 0

    @property
    def share(self) -> float:
        """Share of the step that is done, in [0, 1]."""
        return 1.0 if self.seconds is not None else self.done / self.total if self.total else 0.0


class Display(Protocol):
    """Shows the states of the steps; called twice a second and after every change."""

    def __call__(self, states: Sequence[StepState]) -> None: ...


def run_steps(
    steps: Sequence[Step], argument: Any, *, folder: Path, at_once: int, display: Display
) -> dict[str, Any]:
    """Run every step once, at most ``at_once`` at a time. Of those that could start, the first one does.

    A step whose process dies is run again by Ray, so a step must be able to resume its work.

    Args:
        argument: first argument of all functions; it must pickle.
        folder: folder for the log of each step (``NAME.log``) and its progress (``NAME.json``); an absolute
            path that is the same on all nodes.

    Returns:
        What the functions returned, by name of the step.

    Raises:
        Exception: as a step raised it. The other steps are stopped.
    """
    make_folder(folder)
    states = {step.name: StepState(step=step) for step in steps}
    results: dict[str, Any] = {}
    running: dict[ray.ObjectRef, str] = {}
    as_task = ray.remote(run_step)
    try:
        while len(results) < len(steps):
            for step in _startable(steps, states, results)[: at_once - len(running)]:
                states[step.name].began = time.monotonic()
                (folder / f"{step.name}.json").unlink(missing_ok=True)  # of an earlier run
                task = as_task.options(name=step.name, num_cpus=1)
                arguments = (argument, results) if step.takes_results else (argument,)
                path = str(folder / step.name)
                running[task.remote(step.work, arguments, path, step.threads)] = step.name
            ended, _ = ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)
            for reference in ended:
                name = running.pop(reference)
                with own_errors():
                    results[name] = ray.get(reference)
                states[name].seconds = time.monotonic() - (states[name].began or 0)
            for name in running.values():
                _look(states[name], folder / f"{name}.json")
            display(list(states.values()))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return results


def _startable(
    steps: Sequence[Step], states: Mapping[str, StepState], results: Mapping[str, Any]
) -> list[Step]:
    waiting = [step for step in steps if states[step.name].began is None]
    return [step for step in waiting if all(name in results for name in step.needs)]


def run_step(work: str, arguments: Sequence[Any], path: str, threads: int) -> Any:
    """Run a step in this process, with so many torch threads."""
    keep_freed_memory()
    module, _, name = work.partition(":")
    with Path(f"{path}.log").open("w", encoding="utf-8") as file, logged_to(file):
        function: Callable[..., Any] = getattr(import_module(module), name)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        with progress_told_to(_Notes(Path(f"{path}.json"))):
            return function(*arguments)


class _Notes:
    """Writes the progress of a step to a file, now and then."""

    def __init__(self, path: Path) -> None:
        self.path, self.next = path, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + _SECONDS_BETWEEN_LOOKS
            write_json([done, total], self.path)


def _look(state: StepState, path: Path) -> None:
    try:
        state.done, state.total = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the step has not noted anything yet
