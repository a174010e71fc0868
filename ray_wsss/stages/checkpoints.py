"""What a training run leaves behind to go on from."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from ray_wsss.models.classifier import ClassifierSpec
from ray_wsss.models.segmenter import SegmenterSpec
from ray_wsss.models.store import save_model
from ray_wsss.stages.session import PROGRESS


@dataclass
class Progress:
    """What a checkpoint says of the run, beside weights and optimiser.

    Schedule, place in the data and random states follow from the iteration.
    """

    iteration: int = 0
    """Iterations done."""
    best: float | None = None
    """Highest validation mIoU, in [0, 1]."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every report so far."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    spec: ClassifierSpec | SegmenterSpec,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write a checkpoint into ``folder``, an empty one."""
    save_model(model, spec, folder)
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, folder / "training.pt")
    (folder / PROGRESS).write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")


def restore_checkpoint(
    folder: Path | None, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> Progress:
    """Load model and optimiser from a checkpoint; without one they stay, and the run begins."""
    if folder is None:
        return Progress()
    state = torch.load(folder / "training.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    model.to(device)
    optimiser.load_state_dict(state["optimiser"])
    return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
