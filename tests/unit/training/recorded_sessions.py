"""Training sessions that keep what they report, and that can be interrupted."""

from pathlib import Path

import torch
from torch import nn

from ray_wsss.training.local_session import LocalSession


class Interrupted(Exception):
    """The power goes off."""


class Recorder(LocalSession):
    """Keeps every report; may die at one, or spoil the model after one."""

    def __init__(self, out: Path, die_at: int | None = None, spoil_at: int | None = None) -> None:
        super().__init__(out)
        self.die_at, self.spoil_at = die_at, spoil_at
        self.metrics: list[dict[str, float]] = []

    def prepare(self, model: nn.Module) -> nn.Module:
        self.model = super().prepare(model)
        return self.model

    def report(self, metrics: dict[str, float], checkpoint: Path | None, *, best: bool = False) -> None:
        super().report(metrics, checkpoint, best=best)
        self.metrics.append(metrics)
        if metrics["iteration"] == self.die_at:
            raise Interrupted
        if metrics["iteration"] == self.spoil_at:
            torch.nn.init.constant_(next(self.model.parameters()), torch.nan)


def final(session: LocalSession) -> dict:
    """Weights, optimiser and iteration of the last checkpoint."""
    folder = session.latest_checkpoint()
    assert folder is not None
    return torch.load(folder / "training.pt", weights_only=True) | {"name": folder.name}


def values(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """Reports without what the clock decides."""
    timed = ("seconds_per_step", "data_wait_s")
    return [{name: value for name, value in m.items() if name not in timed} for m in metrics]
