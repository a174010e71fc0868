"""Checkpoints of a training run: files to resume from, and the trained network."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from ray_wsss.models.classifier import ClassifierSpec
from ray_wsss.models.segmenter import SegmenterSpec
from ray_wsss.models.store import save_model
from ray_wsss.storage import copy_file, is_remote, remove_tree
from ray_wsss.training.optimiser import load_optimiser

PROGRESS = "progress.json"
"""File with the progress of the run; a checkpoint without it is incomplete."""
MODEL_FILES = ("model.json", "model.safetensors", PROGRESS)
"""Files of the last checkpoint that a finished run keeps."""
BEST = "best"
"""Subfolder of the run's folder, for the network with the highest validation mIoU so far."""


@dataclass
class Progress:
    """State of a run that a checkpoint stores besides weights and optimiser.

    Learning rate, position in the data and random states follow from the iteration.
    """

    iteration: int = 0
    """Number of iterations done."""
    best: float | None = None
    """Highest validation mIoU, in [0, 1]."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics by name, one entry per report so far."""
    broken: dict[str, str] = field(default_factory=dict)
    """Why images are left out, by image id, in the order in which their turn came."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    spec: ClassifierSpec | SegmenterSpec,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write a checkpoint into the empty folder ``folder``."""
    save_model(model, spec, folder)
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, folder / "training.pt")
    (folder / PROGRESS).write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")


def restore_checkpoint(
    folder: Path | None, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> Progress:
    """Load model and optimiser from a checkpoint. Without one they stay as they are, at iteration 0."""
    if folder is None:
        return Progress()
    state = torch.load(folder / "training.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    model.to(device)
    load_optimiser(optimiser, state["optimiser"])
    return load_progress(folder)


def load_progress(checkpoint: Path) -> Progress:
    """The progress of a checkpoint; versions before 0.2 did not count broken images."""
    return Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))


def export_model(checkpoint: Path, out: Path) -> None:
    """Copy the network and the progress of a checkpoint to ``out``."""
    for name in MODEL_FILES:
        copy_file(checkpoint / name, out / name)


def keep_best(checkpoint: Path, out: Path) -> None:
    """Copy the network and the progress of a checkpoint to ``out/best``."""
    replace_folder(checkpoint, out / BEST, MODEL_FILES)


def replace_folder(source: Path, target: Path, names: tuple[str, ...] | None = None) -> None:
    """Replace the folder ``target`` by the files of ``source``: all of them, or those in ``names``.

    On disk, ``target`` never exists incomplete. Object storage can't rename folders: each file is replaced
    as a whole there, and the file that makes a checkpoint complete (`PROGRESS`) comes last.
    """
    chosen = [path for path in source.iterdir() if names is None or path.name in names]
    if is_remote(target):
        for path in sorted(chosen, key=lambda path: path.name == PROGRESS):
            copy_file(path, target / path.name)
        return
    partial = target.with_name(f".{target.name}")
    remove_tree(partial)
    partial.mkdir(parents=True)
    for path in chosen:
        shutil.copyfile(path, partial / path.name)
    remove_tree(target)
    partial.replace(target)
