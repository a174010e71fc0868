"""Training in this process: the `Session` without Ray, and where checkpoints lie."""

import shutil
from pathlib import Path

import torch
from torch import nn

MODEL_FILES = ("model.json", "model.safetensors", "progress.json")
"""What a finished run keeps of its last checkpoint."""


class LocalSession:
    """One worker, this process; checkpoints under ``folder``, of which the last two are kept."""

    rank = 0
    world_size = 1

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.device = torch.device(device)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move the model to the device."""
        return model.to(self.device)

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        checkpoints = self._checkpoints()
        return checkpoints[-1] if checkpoints else None

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself: there is one worker."""
        return value

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Keep a copy of ``checkpoint``; it appears under its name only when it is complete."""
        if checkpoint is None:
            return
        target = self.folder / f"checkpoint_{int(metrics['iteration']):08d}"
        partial = target.with_name(f".{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        for old in self._checkpoints()[:-2]:
            shutil.rmtree(old)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint_*"))


def export_model(checkpoint: Path, out: Path) -> None:
    """Copy a checkpoint's network and history to ``out``."""
    for name in MODEL_FILES:
        shutil.copyfile(checkpoint / name, out / name)
