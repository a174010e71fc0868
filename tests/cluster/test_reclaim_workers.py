"""Trials that end in the middle hold nothing, wherever they were; trials that go on keep what they have."""

import logging
import time
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from ray_wsss.cluster.tune.reclaim_workers import Reclaimer

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make(kind: str, cpus: int) -> tuple[Any, PlacementGroup]:
    """An actor of a class called ``kind`` that does what Ray Train's controller does first."""

    class Controller:
        def reserve(self, cpus: int) -> PlacementGroup:
            return placement_group([{"CPU": 1}] * cpus)

    Controller.__name__ = Controller.__qualname__ = kind
    remote: Any = ray.remote(num_cpus=0)(Controller)
    controller = remote.remote()
    return controller, ray.get(controller.reserve.remote(cpus))


def end(controller: Any) -> None:
    ray.kill(controller)
    with pytest.raises(RayActorError):
        ray.get(controller.reserve.remote(0))


def state_of(group: PlacementGroup) -> str:
    return placement_group_table(group)["state"]


def test_a_stopped_trial_frees_its_workers_and_another_keeps_them() -> None:
    stopped, held = make("TrainController", 2)
    going_on, kept = make("TrainController", 1)
    stranger, foreign = make("Another", 1)
    assert held.wait(30)
    reclaimer = Reclaimer()
    reclaimer.free()
    assert state_of(held) == "CREATED"
    end(stopped)
    end(stranger)
    time.sleep(1.1)  # it looks once a second
    reclaimer.free()
    assert state_of(held) == "REMOVED"
    assert kept.wait(30)
    assert foreign.wait(30)  # of another program of the same job
    remove_placement_group(foreign)
    end(going_on)
    reclaimer.free_all()
    assert state_of(kept) == "REMOVED"


def test_a_trial_that_waited_for_cpus_gets_none_after_its_end() -> None:
    """No worker of it has ever run; Ray would give it CPUs as soon as there are some."""
    waiting, group = make("TrainController", 5)
    assert not group.wait(1)
    end(waiting)
    Reclaimer().free_all()
    assert state_of(group) == "REMOVED"


def test_what_is_still_held_is_told(caplog: pytest.LogCaptureFixture) -> None:
    controller, group = make("TrainController", 1)
    with caplog.at_level(logging.WARNING, "ray_wsss"):
        Reclaimer().free_all(patience_s=0.5)
    assert "1 trainings still hold CPUs or GPUs" in caplog.text
    assert state_of(group) != "REMOVED"
    end(controller)
    Reclaimer().free_all()
