"""The training loop that classifier and segmenter share; knows nothing of Ray.

Where it runs, how a model becomes data-parallel and where a checkpoint goes is the `Session`'s affair.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ray_wsss.config import OptimConfig
from ray_wsss.data.loader import IterationBatches, TrainingCrops, make_loader
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier, ClassifierSpec
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec
from ray_wsss.models.store import save_model
from ray_wsss.ops.schedule import poly_lr

Batch = dict[str, Any]
Step = Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch, iteration) -> total loss and its parts by name."""


class Session(Protocol):
    """The place a training loop runs in: one of ``world_size`` workers, or the only one."""

    rank: int
    world_size: int
    device: torch.device

    def prepare(self, model: nn.Module) -> nn.Module:
        """Make the model data-parallel and move it to the device."""
        ...

    def latest_checkpoint(self) -> Path | None:
        """Folder of the checkpoint to go on from."""
        ...

    def mean_over_workers(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the workers, the same for each of them. Every rank calls it equally often."""
        ...

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Publish metrics; keep a copy of the checkpoint folder. Every rank calls it equally often."""
        ...


@dataclass
class Progress:
    """What a checkpoint says of the run, beside weights and optimiser."""

    iteration: int = 0
    """Iterations done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every report so far."""


def run_training(
    *,
    model: Classifier | Segmenter,
    spec: ClassifierSpec | SegmenterSpec,
    config: OptimConfig,
    crops: TrainingCrops,
    step: Step,
    session: Session,
    name: str,
) -> None:
    """Train ``model`` from the session's latest checkpoint, or from the start, to ``max_iters``.

    The last report carries a checkpoint. Resuming gives the weights of an undisturbed run.

    Raises:
        FloatingPointError: a loss is not finite; the last good checkpoint stays.
    """
    optimiser = _build_optimiser(model, config)
    progress = _restore(session.latest_checkpoint(), model, optimiser, session.device)
    wrapped = session.prepare(model)
    loader = _loader(crops, config, session, progress.iteration)
    meter = _Meter()
    for iteration, batch in zip(range(progress.iteration, config.max_iters), _timed(loader, meter)):
        _set_train_mode(model, config)
        # Dropout draws the same whatever came before: a resumed run repeats an undisturbed one.
        torch.manual_seed((config.seed * 1_000_003 + iteration) * 1_009 + session.rank)
        lr = learning_rate(config, iteration)
        for group in optimiser.param_groups:
            group["lr"] = lr
        batch = {
            k: v.to(session.device, non_blocking=True) if isinstance(v, Tensor) else v
            for k, v in batch.items()
        }
        total, parts = step(wrapped, batch, iteration)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        meter.add(parts)

        progress.iteration = iteration + 1
        last = progress.iteration == config.max_iters
        due = last or progress.iteration % config.checkpoint_every == 0
        if due or progress.iteration % config.log_every == 0:
            metrics = {"iteration": float(progress.iteration), "lr": lr}
            metrics |= meter.take(session.mean_over_workers)
            progress.history.append(metrics)
            if session.rank == 0:
                print(_progress_line(name, metrics, config.max_iters), flush=True)
            _report(session, metrics, due, model, spec, optimiser, progress)


def learning_rate(config: OptimConfig, iteration: int) -> float:
    """Poly schedule with an optional linear ramp."""
    ramp = min(1.0, (iteration + 1) / config.lr_warmup_iters) if config.lr_warmup_iters else 1.0
    return ramp * poly_lr(config.lr, iteration, config.max_iters, config.poly_power)


def share_of_batch(config: OptimConfig, world_size: int, field_name: str) -> int:
    """Images per worker and iteration. Raises UserError where the global batch can't be divided."""
    if config.batch_size % world_size:
        raise UserError(
            f"{field_name}.batch_size is {config.batch_size}, over all workers; expected a multiple of the "
            f"{world_size} workers"
        )
    return config.batch_size // world_size


def _build_optimiser(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def _set_train_mode(model: Classifier | Segmenter, config: OptimConfig) -> None:
    model.train()
    if config.freeze_norm:
        model.backbone.set_norm_eval()


def _loader(crops: TrainingCrops, config: OptimConfig, session: Session, start: int) -> DataLoader:
    batches = IterationBatches(
        len(crops),
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        stop=config.max_iters,
        rank=session.rank,
        world_size=session.world_size,
    )
    return make_loader(crops, batches, config.loader_workers, pin_memory=session.device.type == "cuda")


def _restore(
    folder: Path | None, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> Progress:
    if folder is None:
        return Progress()
    state = torch.load(folder / "training.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    model.to(device)
    optimiser.load_state_dict(state["optimiser"])
    return Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))


def _report(
    session: Session,
    metrics: dict[str, float],
    due: bool,
    model: nn.Module,
    spec: ClassifierSpec | SegmenterSpec,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    if not (due and session.rank == 0):
        session.report(metrics, None)
        return
    with TemporaryDirectory(prefix="ray_wsss_") as temporary:
        folder = Path(temporary)
        save_model(model, spec, folder)
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, folder / "training.pt")
        content = {"iteration": progress.iteration, "history": progress.history}
        (folder / "progress.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        session.report(metrics, folder)


class _Meter:
    """Means since the last report, kept on the device so that a step never waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.waited_s = 0.0
        self.steps = 0
        self.started = time.perf_counter()

    def add(self, parts: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, over_workers: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means by name, over steps and workers, seconds per step and those of it that it waited for data.

        Starts anew.
        """
        now = time.perf_counter()
        steps = max(1, self.steps)
        means = [value / self.counts[name] for name, value in self.sums.items()]
        losses = over_workers(torch.stack(means)).tolist() if means else []
        result = {f"loss_{name}": value for name, value in zip(self.sums, losses)}
        result |= {"seconds_per_step": (now - self.started) / steps, "data_wait_s": self.waited_s / steps}
        self.__init__()
        return result


def _timed(loader: DataLoader, meter: _Meter) -> Iterator[Batch]:
    batches = iter(loader)
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        meter.waited_s += time.perf_counter() - started
        if batch is None:
            return
        yield batch


def _progress_line(name: str, metrics: dict[str, float], max_iters: int) -> str:
    done = int(metrics["iteration"])
    losses = "  ".join(
        f"{k.removeprefix('loss_')} {v:.3f}" for k, v in metrics.items() if k.startswith("loss_")
    )
    left_s = metrics["seconds_per_step"] * (max_iters - done)
    return (
        f"{name} {done}/{max_iters}  {losses}  {metrics['seconds_per_step']:.2f} s/step  {left_s:.0f} s left"
    )
