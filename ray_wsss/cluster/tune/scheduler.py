"""Which trials of a sweep are stopped early: ASHA, or none."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ray_wsss.cluster.tune.space import Space
from ray_wsss.cluster.tune.trial import PERCENT
from ray_wsss.config.sweep import Scheduler
from ray_wsss.sweeps.trials import ENDED, Trial

REDUCTION = 2
"""ASHA keeps 1 / 2 of the trials at its grace period, and again at 2, 4, ... times the grace period."""


def make_scheduler(name: Scheduler, space: Space, earlier: Sequence[Trial] = ()) -> TrialScheduler:
    """The scheduler that stops weak trials. It first learns the reports of ``earlier`` trials that ended."""
    if name == "none":
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr=PERCENT,
        metric=space.metric,
        mode=space.mode,
        max_t=100,
        grace_period=cast(int, 100 * space.grace),
        reduction_factor=REDUCTION,
    )
    for trial in earlier:
        stand_in: Any = SimpleNamespace(trial_id=f"earlier {trial.number}")
        controller: Any = None  # ASHA of Ray 2.60 does not use it
        if trial.status in ENDED:
            scheduler.on_trial_add(controller, stand_in)
            for entry in trial.curve:
                if (value := entry.get(space.metric)) is not None:
                    percent = 100 * entry["iteration"] / trial.max_iters
                    scheduler.on_trial_result(controller, stand_in, {PERCENT: percent, space.metric: value})
    return scheduler
