"""Training stages under Ray Train: data-parallel workers and checkpoints; running it again resumes it."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from threading import Event, Thread

import ray.train
import torch
from ray.experimental.internal_kv import _internal_kv_get  # pyright: ignore[reportPrivateUsage]
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn

from ray_wsss.cluster.capacity import describe_cluster
from ray_wsss.cluster.connect import ray_session, storage_of, unwrap
from ray_wsss.cluster.growing import room_for
from ray_wsss.cluster.metrics import TrainingMetrics
from ray_wsss.cluster.names import training_name
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.console import logged_to
from ray_wsss.errors import TooManyFailedError, UserError
from ray_wsss.memory import keep_freed_memory
from ray_wsss.models.data_parallel import match_one_worker
from ray_wsss.runs.history import recorded_run
from ray_wsss.storage import copy_file, growing_folder, is_remote, make_folder
from ray_wsss.training.checkpoints import export_model, keep_best, load_progress
from ray_wsss.training.local_session import LocalSession
from ray_wsss.training.loop import Session

log = logging.getLogger(__name__)

PROGRESS_LOG = "progress.log"
"""File beside the checkpoints with the lines that the first worker logged, of all runs in the folder."""


class RaySession:
    """The `Session` of one worker of Ray Train."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.metrics = TrainingMetrics(out.name)
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        device = get_device()
        assert isinstance(device, torch.device)
        self.device = device

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move the model to the worker's device; several workers compute as one (DDP, norms, dropout)."""
        if self.world_size > 1:
            match_one_worker(model, self.rank, self.world_size, on_gpu=self.device.type == "cuda")
        return prepare_model(model)

    def latest_checkpoint(self) -> Path | None:
        """A local copy of Ray's latest checkpoint of this run. It is deleted with this object."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        self._copy = TemporaryDirectory(prefix="ray_wsss_")
        return Path(checkpoint.to_directory(self._copy.name))

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all workers. On a GPU the host does not wait for it."""
        if self.world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value / self.world_size

    def report(self, metrics: dict[str, float], checkpoint: Path | None, *, best: bool = False) -> None:
        """Report to Ray Train. Waits for all workers, and until the checkpoint is stored."""
        if self.rank == 0:
            self.metrics.set(metrics)
        if best and checkpoint is not None:
            keep_best(checkpoint, self.out)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(checkpoint) if checkpoint else None)


def fit(
    loop: Callable[[Session], None], *, out: Path, workers: Workers, cluster: Cluster, keep_checkpoints: int
) -> None:
    """Run a training loop to its end and export the network to ``out``.

    An interrupted run resumes from its last checkpoint.

    Args:
        loop: function of the worker's session. Ray sends it to the workers, so everything it closes over must
            pickle, and its paths must be absolute (each worker has its own working directory).
        out: folder of the run.
        keep_checkpoints: number of checkpoints to keep, the last ones.

    Raises:
        UserError, FloatingPointError: as the loop raised them, in this process or in a worker.
    """
    if workers.workers == 0:
        device = "cuda" if workers.gpus_per_worker else "cpu"
        session = LocalSession(out, device, keep_checkpoints)
        with recorded_run(out, workers=asdict(workers)) as figures:
            loop(session)
            last = session.latest_checkpoint()
            assert last is not None, "a finished run has a checkpoint"
            figures |= _figures(last)
    else:
        what = f"training with {workers.workers} workers"
        with (
            ray_session(cluster.address, verbose=cluster.verbose),
            room_for(count=workers.workers, share=workers.share, what=what, cluster=cluster),
            _follow(out / PROGRESS_LOG),
            recorded_run(out, workers=asdict(workers), cluster=describe_cluster()) as figures,
        ):
            last = fit_on_ray(loop, out.absolute(), workers, keep_checkpoints)
            figures |= _figures(last)
    export_model(last, out)


def _figures(last: Path) -> dict[str, int]:
    """Figures of a finished run, for `runs.history`."""
    return {"errors": len(load_progress(last).broken)}


def fit_on_ray(
    loop: Callable[[Session], None],
    out: Path,
    workers: Workers,
    keep: int,
    callbacks: Sequence[UserCallback] = (),
) -> Path:
    """Run a training loop on Ray's workers, from its last checkpoint under ``out`` if there is one.

    Args:
        loop, workers: as for `fit`; there is at least one worker.
        out: folder of the run; an absolute path that is the same on all nodes.
        keep: number of checkpoints to keep, the last ones.
        callbacks: callbacks of Ray Train that receive the workers' reports.

    Returns:
        The last checkpoint.

    Raises:
        UserError, FloatingPointError: as the loop raised them.
    """
    name = training_name(out)
    _show_in_dashboard()
    trainer = TorchTrainer(
        lambda: _run_worker(loop, out, max(1, int(workers.cpus_per_worker))),
        scaling_config=ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=workers.share.by_name,
            label_selector=dict(workers.share.labels) or None,
        ),
        run_config=RunConfig(
            name=name,
            **storage_of(out),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=list(callbacks),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    if result.return_value is not None:
        raise result.return_value
    assert result.checkpoint is not None
    return out / name / PurePosixPath(result.checkpoint.path).name


def _show_in_dashboard() -> None:
    """Have the dashboard, if there is one, list this process's trainings, which Ray 2.60 does only if asked.

    It costs the head a process of its own, so a Ray without a dashboard does without.
    """
    if _internal_kv_get("webui:url", namespace="dashboard"):
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")


def _run_worker(
    loop: Callable[[Session], None], out: Path, threads: int
) -> FloatingPointError | TooManyFailedError | None:
    """Run the loop in a worker of Ray Train.

    Returns:
        The error, if a value was not finite or too many images are broken. All workers stop together and none
        raises, since Ray Train (2.60) would retry an error that comes again each time.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    session = RaySession(out)
    with _log_of(session.rank, out / PROGRESS_LOG):
        try:
            loop(session)
        except (FloatingPointError, TooManyFailedError) as error:
            return error.with_traceback(None)
    return None


@contextmanager
def _log_of(rank: int, path: Path) -> Iterator[None]:
    if rank > 0:
        yield
        return
    with growing_folder(path.parent) as folder:
        if is_remote(path) and path.exists():  # an object store cannot append: the file is written again
            copy_file(path, folder / path.name)
        with (folder / path.name).open("a", encoding="utf-8", buffering=1) as file, logged_to(file):
            yield


@contextmanager
def _follow(path: Path) -> Iterator[None]:
    """Log the lines that are added to a file meanwhile: those of the first worker.

    Ray 2.60 could forward the workers' lines as well (``log_to_driver``), but mixes in its own.
    """
    added = _added_to_remote(path) if is_remote(path) else _added_to(path)
    next(added)
    ended = Event()

    def show() -> None:
        last_look = False
        while not last_look:
            last_look = ended.wait(5 if is_remote(path) else 0.5)
            for line in next(added).splitlines():
                log.info(line)

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _added_to(path: Path) -> Iterator[str]:
    """Yield the text added to a file since the last ``next``; the first ``next`` moves to its end."""
    make_folder(path.parent)
    path.touch()
    with path.open(encoding="utf-8") as file:
        file.seek(0, os.SEEK_END)
        while True:
            yield file.read()


def _added_to_remote(path: Path) -> Iterator[str]:
    """The same for a file in an object store, where a longer file replaces it."""
    known = len(path.read_text(encoding="utf-8")) if path.exists() else 0
    yield ""
    while True:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        yield text[known:]
        known = max(known, len(text))


def _cause(error: ray.train.TrainingFailedError) -> BaseException:
    """The UserError of the loop in a worker, else the error that a worker died of, else Ray's own error."""
    failures = [unwrap(failure) for failure in getattr(error, "worker_failures", {}).values()]
    # One worker's error makes the other workers fail too, with errors that explain less.
    told = [failure for failure in failures if isinstance(failure, UserError)]
    return [*told, *failures, error][0]
