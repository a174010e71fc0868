"""Steps as Ray tasks: their order, their results, and a step that fails."""

import time
from pathlib import Path
from typing import Any

import pytest

from ray_wsss.cluster.steps import Step, StepState, run_steps
from ray_wsss.console import tell_progress
from ray_wsss.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def note(folder: str) -> float:
    """Return the time of the start, after a while."""
    began = time.time()
    tell_progress(3, 4)
    time.sleep(1.5)
    return began


def count(folder: str, found: dict[str, Any]) -> int:
    return len(found)


def fail(folder: str) -> None:
    raise UserError("a step failed")


def _step(name: str, work: str, *needs: str, takes_results: bool = False) -> Step:
    return Step(name=name, what=name, work=f"{__name__}:{work}", needs=needs, takes_results=takes_results)


def test_each_step_after_those_it_needs(tmp_path: Path) -> None:
    shares: set[float] = set()

    def display(states: list[StepState]) -> None:
        shares.update(state.share for state in states)

    steps = [
        _step("last", "count", "first", "second", takes_results=True),
        _step("first", "note"),
        _step("second", "note", "first"),
    ]
    found = run_steps(steps, "", folder=tmp_path / "steps", at_once=2, display=display)
    assert found["last"] == 2
    assert found["second"] > found["first"] + 1
    assert shares == {0, 0.75, 1}


def test_a_step_that_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    steps = [_step("slow", "note"), _step("bad", "fail"), _step("never", "note", "bad")]
    with pytest.raises(UserError, match=r"^a step failed$"):
        run_steps(steps, "", folder=tmp_path, at_once=2, display=lambda states: None)
    assert not (tmp_path / "never.json").exists()
