"""Settings of a sweep."""

from dataclasses import dataclass
from typing import Literal

from ray_wsss.errors import UserError

Scheduler = Literal["asha", "none"]
Search = Literal["random", "optuna"]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep draws values, and which trials it stops early."""

    num_samples: int | None = None
    """Trials, or passes over a grid; at least 1. Without it the space decides.
    A larger number than before adds trials to a finished sweep."""
    scheduler: Scheduler | None = None
    """asha: stop trials that score worse than others at the same iteration; none: run every trial to the end.
    Without it the space decides."""
    search: Search = "random"
    """random: draw all values at the start.
    optuna: learn from the trials that have ended (pip install 'ray-wsss[sweep]')."""
    sample_seed: int = 0
    """Seed of the values that are drawn, 0 or more; training has its own, classifier.seed."""
    max_concurrent: int | None = None
    """Largest number of trials at a time, at least 1. Without it as many as the cluster has room for."""
    retry_failed: bool = False
    """Train failed trials again, from the start."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        if self.sample_seed < 0:
            raise UserError(f"sample_seed is {self.sample_seed}; expected 0 or more")
