"""The training loop of the classifier and the segmenter; it does not use Ray.

A `Session` decides where the loop runs, how the model becomes data-parallel and where checkpoints go.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_wsss.config import OptimConfig
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.console import tell_progress
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier, ClassifierSpec
from ray_wsss.models.modes import eval_mode
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec
from ray_wsss.runs.broken_images import BrokenImages
from ray_wsss.training.checkpoints import restore_checkpoint, save_checkpoint
from ray_wsss.training.crops import TrainingCrops, iterate, make_loader
from ray_wsss.training.length import describe_length
from ray_wsss.training.loss_meter import Meter
from ray_wsss.training.optimiser import build_optimiser, learning_rate, schedule_rates
from ray_wsss.training.order import IterationBatches
from ray_wsss.training.tensorboard import Board

log = logging.getLogger(__name__)

Batch = dict[str, Any]
"""Entries of a batch by name, each sliceable by image: tensors, lists, `training.host_plan.HostPlan`."""
Counts = dict[str, Tensor]
"""Number of pixels each loss averages over (a scalar), by name."""


class Step(Protocol):
    """Computes the losses of one pass; a pass trains on one part of a worker's batch."""

    def counts(self, batch: Batch) -> Counts:
        """Number of pixels in a batch that each loss averages over, by name."""
        ...

    def __call__(
        self, model: nn.Module, batch: Batch, counts: Counts, iteration: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss, and its parts by name.

        A loss that averages over pixels is multiplied by its pixels in this pass / ``counts`` (`share_of`).
        Its mean over all passes and workers then equals the mean over all pixels of the global batch.

        Args:
            counts: pixels each loss averages over, as a mean over all passes and workers.
        """
        ...


class Validation(Protocol):
    """Measures the network while it trains."""

    def measure(self, model: Any, session: "Session") -> dict[str, float]:
        """Metrics by name, with ``val_miou`` if there is ground truth. Every rank calls it."""
        ...

    def picture(self, model: Any) -> NDArray[np.uint8] | None:
        """The network's outputs on a few images, (H, W, 3) RGB, or None. Only the first rank calls it."""
        ...


class Session(Protocol):
    """Connects a training loop to the place it runs in: one of ``world_size`` workers, or the only one."""

    rank: int
    world_size: int
    device: torch.device
    out: Path
    """Folder of the run, the same for all workers."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Make the model data-parallel and move it to the device."""
        ...

    def latest_checkpoint(self) -> Path | None:
        """Folder of the checkpoint to resume from; None: start from the beginning."""
        ...

    def mean_over_workers(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all workers. Every rank must call it equally often and gets the same mean."""
        ...

    def report(self, metrics: dict[str, float], checkpoint: Path | None, *, best: bool = False) -> None:
        """Publish metrics and keep a copy of the checkpoint folder, if one is given.

        Every rank must call it equally often.

        Args:
            best: keep the checkpoint's network also as the best one of the run.
        """
        ...


class TrainingRun:
    """One worker's part of a training run; it resumes from the session's latest checkpoint, if there is one.

    Args:
        limit: how many images may be broken; None: the default.

    Raises:
        UserError: the batch size can't be divided evenly among workers and passes.
    """

    def __init__(
        self,
        *,
        model: Classifier | Segmenter,
        spec: ClassifierSpec | SegmenterSpec,
        config: OptimConfig,
        crops: TrainingCrops,
        session: Session,
        name: str,
        limit: ErrorLimit | None = None,
    ) -> None:
        self.images_per_pass = share_of_batch(config, session.world_size, name)
        self.model, self.spec, self.config = model, spec, config
        self.crops, self.session, self.name = crops, session, name
        self.optimiser = build_optimiser(model, config)
        self.progress = restore_checkpoint(session.latest_checkpoint(), model, self.optimiser, session.device)
        self.broken = BrokenImages(self.progress.broken, session, limit or ErrorLimit())
        if config.compile:
            model.backbone.compile_networks()
        self.wrapped = session.prepare(model)
        self.meter = Meter()

    def train(self, step: Step, validation: Validation, until: int | None = None) -> None:
        """Train up to iteration ``max_iters``; the last report carries a checkpoint.

        A resumed run ends with the same weights as an uninterrupted one.

        Args:
            until: number of iterations after which to pause, with a checkpoint; None: not before the end.

        Raises:
            FloatingPointError: a loss is not finite; earlier checkpoints are kept.
            TooManyFailedError: too many images are broken; every rank raises it at the same iteration.
        """
        config, session = self.config, self.session
        if session.rank == 0 and self.progress.iteration < config.max_iters:
            log.info(describe_length(self.name, config.max_iters, config.batch_size, len(self.crops)))
        board = Board(session.out, self.progress.iteration, active=session.rank == 0)
        stop = config.max_iters if until is None else min(until, config.max_iters)
        batches = self._batches(session.rank, self.progress.iteration, stop)
        loader = make_loader(
            self.crops, batches, config.loader_workers, pin_memory=session.device.type == "cuda"
        )
        if config.max_iters == 0:
            self._report({"iteration": 0.0}, checkpoint=True)
        iterations = range(self.progress.iteration, stop)
        for iteration, batch in zip(iterations, self.meter.timed(iterate(loader))):
            self.broken.note(batch["broken"])
            self._iterate(step, batch, iteration)
            self.progress.iteration = done = iteration + 1
            tell_progress(done, stop)
            last = done == config.max_iters
            checkpoint = done == stop or done % config.checkpoint_every == 0
            validate = last or done % config.validate_every == 0
            if checkpoint or validate or done % config.log_every == 0:
                metrics = {"iteration": float(done), "lr": learning_rate(config, iteration)}
                metrics |= self.meter.take(session, self._images_of)
                metrics |= self.broken.share(self._images_drawn(), at_end=last)
                if session.rank == 0:
                    log.info(_progress_line(self.name, metrics, config.max_iters))
                if validate:
                    metrics |= self._validate(validation, board)
                board.add_scalars(metrics, done)
                self._report(metrics, checkpoint)
                self.meter.restart_clock()
        board.close()

    def _iterate(self, step: Step, batch: Batch, iteration: int) -> None:
        config = self.config
        _set_train_mode(self.model, config)
        # The iteration alone seeds dropout, equally on all workers: a resumed run repeats an uninterrupted
        # one, and several workers draw the same as a single one (`models.data_parallel`).
        torch.manual_seed((config.seed * 1_000_003 + iteration) * 1_009)
        schedule_rates(self.optimiser, config, iteration)
        batch = to_device(batch, self.session.device)
        counts = self._mean_counts(step.counts(batch))
        self.optimiser.zero_grad()
        passes = []
        for part in split_batch(batch, self.images_per_pass):
            is_last = len(passes) + 1 == config.accumulate
            # Workers exchange gradients once per iteration, in the last pass.
            with nullcontext() if is_last else getattr(self.wrapped, "no_sync", nullcontext)():
                total, parts = step(self.wrapped, part, counts, iteration)
                (total / config.accumulate).backward()
            passes.append(parts)
        self.optimiser.step()
        means = {name: torch.stack([parts[name].detach() for parts in passes]).mean() for name in passes[0]}
        self.meter.add(iteration, means)

    def _mean_counts(self, counts: Counts) -> Counts:
        if not counts:
            return counts
        mean = self.session.mean_over_workers(torch.stack(list(counts.values())).float())
        return dict(zip(counts, mean / self.config.accumulate))

    def _validate(self, validation: Validation, board: Board) -> dict[str, float]:
        with torch.no_grad(), eval_mode(self.model):
            metrics = validation.measure(self.model, self.session)
            if self.session.rank == 0:
                board.add_picture(validation.picture(self.model), self.progress.iteration)
        if metrics and self.session.rank == 0:
            figures = ", ".join(f"{name.removeprefix('val_')} {100 * v:.1f}" for name, v in metrics.items())
            done = f"{self.name} {self.progress.iteration}/{self.config.max_iters}"
            log.info(f"{done}  validation: {figures}")
        return metrics

    def _report(self, metrics: dict[str, float], checkpoint: bool) -> None:
        progress = self.progress
        progress.history.append(metrics)
        score = metrics.get("val_miou")
        best = score is not None and (progress.best is None or score > progress.best)
        progress.best = score if best else progress.best
        if self.session.rank > 0 or not (checkpoint or best):
            self.session.report(metrics, None)
            return
        with TemporaryDirectory(prefix="ray_wsss_") as temporary:
            save_checkpoint(Path(temporary), self.model, self.spec, self.optimiser, progress)
            self.session.report(metrics, Path(temporary), best=best)

    def _batches(self, rank: int, start: int, stop: int) -> IterationBatches:
        return self.crops.batches(
            batch_size=self.config.batch_size,
            start=start,
            stop=stop,
            rank=rank,
            world_size=self.session.world_size,
        )

    def _images_drawn(self) -> int:
        """Number of different images whose turn has come; every epoch has each image once."""
        return min(self.progress.iteration * self.config.batch_size, len(self.crops))

    def _images_of(self, iteration: int, rank: int) -> list[str]:
        keys = next(iter(self._batches(rank, iteration, iteration + 1)))
        return self.crops.image_ids(row for _, row in keys)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; the device keeps computing while they are copied."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def split_batch(batch: Batch, images: int) -> Iterator[Batch]:
    """Split a batch into parts of ``images`` images each."""
    size = len(next(iter(batch.values())))
    for at in range(0, size, images):
        yield {name: value[at : at + images] for name, value in batch.items()}


def share_of(counted: Tensor, mean_count: Tensor) -> Tensor:
    """Number of True pixels in ``counted`` / ``mean_count``, the mean number over all passes and workers."""
    return counted.sum().float() / mean_count.clamp(min=1)


def share_of_batch(config: OptimConfig, world_size: int, field_name: str) -> int:
    """Images per worker and pass. Raises UserError if the global batch can't be divided evenly."""
    passes = world_size * config.accumulate
    if config.batch_size % passes:
        times = f" x {config.accumulate} passes" if config.accumulate > 1 else ""
        raise UserError(
            f"{field_name}.batch_size is {config.batch_size} images over all workers; expected a multiple of "
            f"{passes} ({world_size} workers{times})"
        )
    return config.batch_size // passes


def _set_train_mode(model: Classifier | Segmenter, config: OptimConfig) -> None:
    model.train()
    if config.freeze_norm:
        model.backbone.set_norm_eval()


def _progress_line(name: str, metrics: dict[str, float], max_iters: int) -> str:
    done = int(metrics["iteration"])
    losses = "  ".join(
        f"{k.removeprefix('loss_')} {v:.3f}" for k, v in metrics.items() if k.startswith("loss_")
    )
    left_s = metrics["seconds_per_step"] * (max_iters - done)
    return (
        f"{name} {done}/{max_iters}  {losses}  {metrics['seconds_per_step']:.2f} s/step  {left_s:.0f} s left"
    )
