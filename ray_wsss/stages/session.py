"""Training in this process: the `Session` without Ray, and where checkpoints lie."""

import shutil
from pathlib import Path

import torch
from torch import nn

MODEL_FILES = ("model.json", "model.safetensors", "progress.json")
"""What a finished run keeps of its last checkpoint."""
BEST = "best"
"""Folder, in the run's, of the network with the highest validation mIoU so far."""


class LocalSession:
    """One worker, this process; the last checkpoints lie under ``out/checkpoints``."""

    rank = 0
    world_size = 1

    def __init__(self, out: Path, device: str = "cpu", keep: int = 2) -> None:
        self.out, self.folder = out, out / "checkpoints"
        self.device = torch.device(device)
        self.keep = keep

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

    def report(self, metrics: dict[str, float], checkpoint: Path | None, *, best: bool = False) -> None:
        """Keep a copy of ``checkpoint``; it appears under its name only when it is complete."""
        if checkpoint is None:
            return
        _replace_folder(checkpoint, self.folder / f"checkpoint_{int(metrics['iteration']):08d}")
        for old in self._checkpoints()[: -self.keep]:
            shutil.rmtree(old)
        if best:
            keep_best(checkpoint, self.out)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint_*"))


def export_model(checkpoint: Path, out: Path) -> None:
    """Copy a checkpoint's network and history to ``out``."""
    for name in MODEL_FILES:
        shutil.copyfile(checkpoint / name, out / name)


def keep_best(checkpoint: Path, out: Path) -> None:
    """Copy a checkpoint's network and history to ``out/best``."""
    _replace_folder(checkpoint, out / BEST, MODEL_FILES)


def _replace_folder(source: Path, target: Path, names: tuple[str, ...] | None = None) -> None:
    """Copy files of a folder (all, or those named); ``target`` is never there in part."""
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in source.iterdir():
        if names is None or path.name in names:
            shutil.copyfile(path, partial / path.name)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
