"""Training stages under Ray Train: N data-parallel workers, checkpoints, resume by running again."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn

from ray_wsss.cluster.map import unwrap
from ray_wsss.cluster.session import check_resources, ray_session
from ray_wsss.errors import UserError
from ray_wsss.stages.session import LocalSession, export_model
from ray_wsss.stages.training import Session

PROGRESS_LOG = "progress.log"
"""Beside the checkpoints: what the first worker printed, over all runs in the folder."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where a training loop runs."""

    workers: int = 1
    """Data-parallel workers under Ray Train; 0 trains in this process, without Ray."""
    cpus_per_worker: float = 1
    """CPUs, and so torch threads, of a worker. In this process torch takes what it likes."""
    gpus_per_worker: float = 0
    """GPUs of a worker: 0 or 1."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; expected 0 or more")
        if self.cpus_per_worker <= 0:
            raise UserError(f"cpus_per_worker is {self.cpus_per_worker:g}; expected more than 0")
        if self.gpus_per_worker not in (0, 1):
            raise UserError(f"gpus_per_worker is {self.gpus_per_worker:g}; expected 0 or 1")


class RaySession:
    """One Ray Train worker's `Session`."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        device = get_device()
        assert isinstance(device, torch.device)
        self.device = device

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move the model to the worker's device; where there are several, DDP and their common batch norm.

        torch synchronises batch norm on GPUs only.
        """
        if self.world_size > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return prepare_model(model)

    def latest_checkpoint(self) -> Path | None:
        """A local copy of Ray's latest checkpoint of this run; it goes with this object."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        self._copy = TemporaryDirectory(prefix="ray_wsss_")
        return Path(checkpoint.to_directory(self._copy.name))

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        """All-reduced, without a wait of the host on a GPU."""
        if self.world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value / self.world_size

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Report to Ray Train, a barrier over the workers; the checkpoint is stored before this returns."""
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(checkpoint) if checkpoint else None)


def fit(
    loop: Callable[[Session], None], *, out: Path, workers: Workers, address: str | None, verbose: bool
) -> None:
    """Run a training loop to its end and export the network to ``out``.

    A run that was interrupted goes on from its last checkpoint.

    Args:
        loop: takes the worker's session; sent to the workers, so what it closes over must pickle, and its
            paths must be absolute (a worker has a working directory of its own).

    Raises:
        UserError, FloatingPointError: as the loop raised them, wherever it ran.
    """
    if workers.workers == 0:
        session = LocalSession(out / "checkpoints", "cuda" if workers.gpus_per_worker else "cpu")
        loop(session)
        last = session.latest_checkpoint()
    else:
        with ray_session(address, verbose=verbose), _follow(out / PROGRESS_LOG):
            last = _fit_on_ray(loop, out.absolute(), workers)
    assert last is not None, "a finished run has a checkpoint"
    export_model(last, out)


def _fit_on_ray(loop: Callable[[Session], None], out: Path, workers: Workers) -> Path:
    check_resources(
        count=workers.workers,
        cpus=workers.cpus_per_worker,
        gpus=workers.gpus_per_worker,
        what=f"training with {workers.workers} workers",
    )
    resources = {"CPU": workers.cpus_per_worker} | ({"GPU": 1} if workers.gpus_per_worker else {})
    trainer = TorchTrainer(
        lambda: _run_worker(loop, out / PROGRESS_LOG, max(1, int(workers.cpus_per_worker))),
        scaling_config=ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(out),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    assert result.checkpoint is not None
    return Path(result.checkpoint.path)


def _run_worker(loop: Callable[[Session], None], log: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    session = RaySession()
    if session.rank > 0:
        loop(session)
        return
    with log.open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file):
        loop(session)


@contextmanager
def _follow(log: Path) -> Iterator[None]:
    """Print what is added to a file meanwhile: the first worker's lines, without Ray's log among them."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    ended = Event()

    def show() -> None:
        with log.open(encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            started.set()
            last_look = False
            while not last_look:
                last_look = ended.wait(0.5)
                sys.stdout.write(file.read())
                sys.stdout.flush()

    started = Event()
    thread = Thread(target=show, daemon=True)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _cause(error: ray.train.TrainingFailedError) -> BaseException:
    """What the loop itself raised in a worker, else what a worker died of, else Ray's error."""
    failures = [unwrap(failure) for failure in getattr(error, "worker_failures", {}).values()]
    # One worker's error makes the others fail as well, in less telling ways.
    told = [failure for failure in failures if isinstance(failure, UserError | FloatingPointError)]
    return [*told, *failures, error][0]
