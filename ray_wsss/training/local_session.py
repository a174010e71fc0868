"""Training in this process, without Ray: a session with one worker (`training.loop.Session`)."""

import shutil
import weakref
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

from ray_wsss.storage import copy_file, is_remote, remove_tree
from ray_wsss.training.checkpoints import PROGRESS, keep_best, replace_folder

_CHECKPOINTS = "checkpoints"


class LocalSession:
    """The session of a single worker, this process; keeps the last checkpoints under ``out/checkpoints``.

    Args:
        keep: number of checkpoints to keep.
    """

    rank = 0
    world_size = 1

    def __init__(self, out: Path, device: str = "cpu", keep: int = 2) -> None:
        self.out, self.folder = out, out / _CHECKPOINTS
        self.device = torch.device(device)
        self.keep = keep

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move the model to the device."""
        return model.to(self.device)

    def latest_checkpoint(self) -> Path | None:
        """Folder of the newest complete checkpoint, or None; from object storage, a temporary copy."""
        checkpoints = self._checkpoints()
        if not checkpoints:
            return None
        if not is_remote(self.folder):
            return checkpoints[-1]
        copy = Path(mkdtemp(prefix="ray_wsss_"))
        weakref.finalize(self, shutil.rmtree, copy, ignore_errors=True)
        for path in checkpoints[-1].iterdir():
            copy_file(path, copy / path.name)
        return copy

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself: there is one worker."""
        return value

    def report(self, metrics: dict[str, float], checkpoint: Path | None, *, best: bool = False) -> None:
        """Keep a copy of ``checkpoint``, never visible incomplete, and delete all but the newest copies."""
        if checkpoint is None:
            return
        replace_folder(checkpoint, _checkpoint(self.out, int(metrics["iteration"])))
        for old in self._checkpoints()[: -self.keep]:
            remove_tree(old)
        if best:
            keep_best(checkpoint, self.out)

    def _checkpoints(self) -> list[Path]:
        found = sorted(self.folder.glob("checkpoint_*/" + PROGRESS))
        return [path.parent for path in found]


def continue_from(begun: Path, out: Path, iteration: int) -> None:
    """Let a training in ``out`` go on from the checkpoint that another one has at ``iteration``.

    Does nothing if there is no such checkpoint any more, or if the training in ``out`` has begun.
    """
    source = _checkpoint(begun, iteration)
    if (source / PROGRESS).exists() and not (out / _CHECKPOINTS).exists():
        replace_folder(source, _checkpoint(out, iteration))


def _checkpoint(out: Path, iteration: int) -> Path:
    return out / _CHECKPOINTS / f"checkpoint_{iteration:08d}"
