"""Settings of a sweep."""

from dataclasses import dataclass
from typing import Literal

from ray_wsss.errors import UserError

Scheduler = Literal["asha", "none"]
Search = Literal["random", "optuna"]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How values are drawn and weak trials are stopped."""

    num_samples: int | None = None
    """Trials; with a grid how often it is gone through. More than before adds some. Default: the space's."""
    scheduler: Scheduler | None = None
    """asha stops trials that are weak beside others as far as they; none lets all finish. Default: the
    space's."""
    search: Search = "random"
    """random draws beforehand; optuna learns from the trials that ended (pip install 'ray-wsss[sweep]')."""
    sample_seed: int = 0
    """Of what is drawn; the trainings have classifier.seed."""
    max_concurrent: int | None = None
    """Most trials at a time. Default: as many as the cluster has room for."""
    retry_failed: bool = False
    """Train trials that failed once more, from the start."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        if self.sample_seed < 0:
            raise UserError(f"sample_seed is {self.sample_seed}; expected 0 or more")
