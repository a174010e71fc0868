"""The time left for several steps, and their lines in a log."""

import logging
import time

import pytest

from ray_wsss.cluster.step_progress import StepBars, seconds_left
from ray_wsss.cluster.steps import Step, StepState


def states(*weights: float, needs: dict[int, list[str]] | None = None) -> list[StepState]:
    return [
        StepState(
            step=Step(name=f"s{k}", what=f"step {k}", work="", weight=weight, needs=(needs or {}).get(k, ()))
        )
        for k, weight in enumerate(weights)
    ]


def test_steps_side_by_side_and_one_after_the_other() -> None:
    assert seconds_left(states(10, 20, 30), at_once=1) == pytest.approx(60)
    assert seconds_left(states(10, 20, 30), at_once=2) == pytest.approx(40)  # 10 + 30 beside 20
    chain = states(10, 20, 30, needs={1: ["s0"], 2: ["s1"]})
    assert seconds_left(chain, at_once=2) == pytest.approx(60)


def test_the_pace_of_what_is_done_counts() -> None:
    found = states(100, 100)
    found[0].began, found[0].seconds = 0.0, 200.0
    twice = seconds_left(found, at_once=2)
    assert 180 < twice < 200
    found[1].began, found[1].done, found[1].total = time.monotonic() - 100, 1, 2
    assert 90 < seconds_left(found, at_once=2) < 100
    found[1].seconds = 200.0
    assert seconds_left(found, at_once=2) == 0


def test_a_line_for_each_step_and_one_every_15_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = states(10, 20)
    with caplog.at_level(logging.INFO, "ray_wsss"), StepBars(found, at_once=1) as show:
        found[0].began = now
        show(found)
        assert not caplog.messages
        found[0].done, found[0].total = 40, 400
        now = 115.5
        show(found)
        show(found)
        found[0].seconds = 16.0
        show(found)
        show(found)
    assert caplog.messages[0].startswith("after 16 s: step 0 (40 of 400); about ")
    assert caplog.messages[0].endswith(" s left")
    assert caplog.messages[1:] == ["step 0: done in 16 s"]
