"""Steps as Ray tasks: their order, their results, and a step that fails.

The steps call functions of the standard library, which Ray's processes can import.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from ray_wsss.cluster.steps import Step, StepState, run_step, run_steps
from ray_wsss.console import tell_progress


def _step(name: str, work: str, *needs: str, takes_results: bool = False) -> Step:
    return Step(name=name, what=name, work=work, needs=needs, takes_results=takes_results)


@pytest.mark.usefixtures("ray_cluster")
def test_each_step_after_those_it_needs(tmp_path: Path) -> None:
    seen: dict[str, StepState] = {}

    def display(states: Sequence[StepState]) -> None:
        seen.update({state.step.name: state for state in states})

    steps = [
        _step("last", "builtins:slice", "first", "second", takes_results=True),
        _step("first", "time:sleep"),
        _step("second", "time:sleep", "first"),
    ]
    found = run_steps(steps, 0.5, folder=tmp_path / "steps", at_once=2, display=display)
    assert found["last"] == slice(0.5, {"first": None, "second": None})
    began = {name: state.began or 0 for name, state in seen.items()}
    assert began["second"] >= began["first"] + 0.5
    assert began["last"] >= began["second"] + 0.5
    assert all(state.share == 1 and (state.seconds or 0) > 0 for state in seen.values())


@pytest.mark.usefixtures("ray_cluster")
def test_a_step_that_fails_ends_the_run_with_its_error(tmp_path: Path) -> None:
    steps = [_step("slow", "time:sleep"), _step("bad", "math:isqrt"), _step("never", "time:sleep", "bad")]
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        run_steps(steps, 0.5, folder=tmp_path, at_once=2, display=lambda states: None)
    assert not (tmp_path / "never.log").exists()


def half(argument: str) -> str:
    """A step that is half done."""
    logging.getLogger("ray_wsss.steps").info("half of %s", argument)
    tell_progress(1, 2)
    return argument


def test_a_step_notes_its_log_and_its_progress(tmp_path: Path) -> None:
    assert run_step(f"{__name__}:half", ("it",), str(tmp_path / "s"), 1) == "it"
    assert (tmp_path / "s.log").read_text() == "half of it\n"
    assert json.loads((tmp_path / "s.json").read_text()) == [1, 2]
