"""Progress of steps: a bar for each in a terminal, else a log line every 15 seconds."""

import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ray_wsss.cluster.steps import StepState

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0
_PRIOR = 20.0
"""Seconds of work that are taken to last as long as `Step.weight` says, before the steps show their pace."""


class StepBars:
    """Shows each step, what it does in words, and the time left for all of them.

    Args:
        states: the steps before the first one starts.
        at_once: number of steps that run at the same time.
    """

    def __init__(self, states: Sequence[StepState], at_once: int) -> None:
        self.states, self.at_once = states, at_once
        self.began = time.monotonic()
        self.next_line = self.began + _SECONDS_BETWEEN_LINES
        self.told: set[str] = set()
        self.bars: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[note]}"))
            self.bars = Progress(*columns, console=Console(stderr=True))
            self.tasks = [self.bars.add_task(state.step.what, total=1, note="") for state in states]
            self.whole = self.bars.add_task("[bold]all steps", total=1, note="")

    def __enter__(self) -> "StepBars":
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, states: Sequence[StepState]) -> None:
        self.states = states
        left = _words_of(seconds_left(states, self.at_once))
        if self.bars is not None:
            for task, state in zip(self.tasks, states):
                self.bars.update(task, completed=state.share, note=_note(state))
            weight = sum(state.step.weight for state in states)
            share = sum(state.step.weight * state.share for state in states) / weight
            self.bars.update(self.whole, completed=share, note=f"[bold]{left}")
            return
        for state in states:
            if state.seconds is not None and state.step.name not in self.told:
                self.told.add(state.step.name)
                log.info("%s: done in %.0f s", state.step.what, state.seconds)
        now = time.monotonic()
        at_work = [f"{state.step.what} ({_note(state)})" for state in states if _runs(state)]
        if at_work and now >= self.next_line:
            self.next_line = now + _SECONDS_BETWEEN_LINES
            log.info("after %.0f s: %s; %s", now - self.began, "; ".join(at_work), left)


def seconds_left(states: Sequence[StepState], at_once: int) -> float:
    """Estimate of the seconds until all steps are done.

    The steps that are done or at work show how many seconds a unit of `Step.weight` takes here, one if they
    have shown nothing yet. With that the rest is played through: at most ``at_once`` steps at a time, each
    after those that it needs.
    """
    now = time.monotonic()
    # A step that has just begun shows nothing yet: its process may still import packages.
    known = [state for state in states if state.share > 0 and state.began is not None]
    spent = sum(state.seconds or now - (state.began or now) for state in known)
    earned = sum(state.step.weight * state.share for state in known)
    pace = (spent + _PRIOR) / (earned + _PRIOR)
    left = {state.step.name: state.step.weight * (1 - state.share) * pace for state in states}
    running = [state.step.name for state in states if _runs(state)]
    waiting = [state.step for state in states if state.began is None]
    total = 0.0
    while running or waiting:
        for step in [step for step in waiting if not any(left[name] for name in step.needs)]:
            if len(running) < at_once:
                running.append(step.name)
                waiting.remove(step)
        if not running:
            break  # what is waited for has no weight
        elapsed = min(left[name] for name in running)
        total += elapsed
        for name in list(running):
            left[name] = max(0.0, left[name] - elapsed)
            if left[name] == 0:
                running.remove(name)
    return total


def _runs(state: StepState) -> bool:
    return state.began is not None and state.seconds is None


def _note(state: StepState) -> str:
    if state.seconds is not None:
        return f"done in {state.seconds:.0f} s"
    if state.began is None:
        return "waits"
    return f"{state.done:,} of {state.total:,}" if state.total else "starts"


def _words_of(seconds: float) -> str:
    """``about 1 min 40 s left``; steps of 5 seconds, since it is an estimate."""
    minutes, rest = divmod(5 * round(seconds / 5), 60)
    return f"about {minutes} min {rest} s left" if minutes else f"about {rest} s left"
