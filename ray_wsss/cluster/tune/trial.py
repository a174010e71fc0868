"""One trial of a sweep: a driver that starts the training of its own and tells Tune how it goes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from threading import Thread
from typing import Any
from uuid import uuid4

from ray import tune
from ray.train import UserCallback
from ray.util.queue import Queue

from ray_wsss.cluster.tune.reclaim_workers import note_workers
from ray_wsss.cluster.workers import fit_on_ray
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Workers
from ray_wsss.sweeps.trials import trial_folder
from ray_wsss.training.checkpoints import PROGRESS, export_model
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.loop import Session

PERCENT = "percent"
"""Share of a trial's iterations that are done, in %; 100 is reported once, when its workers are gone."""
ERROR = "error"
"""Key of a last report that says why the trial failed."""
FIGURES = "figures"
"""Key of all that the workers reported, ``iteration`` among it."""
NUMBER = "trial"
"""Key of a trial's number in its values."""


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What the trials of a sweep have in common. All paths are absolute."""

    recipe: Recipe
    dataset: Path
    views: dict[str, Path]
    """``segments``, ``embeddings``, ``validation``, as `train_classifier` takes them."""
    out: Path
    """Folder of the sweep."""
    workers: Workers
    metric: str

    def trainable(self) -> Callable[[dict[str, Any]], None]:
        """The function that Tune calls with a trial's values."""

        def sweep_trial(config: dict[str, Any]) -> None:
            self.run(config)

        # All that Tune wants to be told of; it refuses nothing at all. The workers' CPUs are reserved by Ray
        # Train itself, and a driver that took some of them could keep another trial's workers waiting.
        return tune.with_resources(sweep_trial, {"memory": 1})

    def run(self, config: dict[str, Any]) -> None:
        """Train to the end, or on from the last checkpoint, and report what validation says.

        An error is the last report, not raised: Tune would try again what fails again.
        """
        training = _Training(self, config)
        training.start()
        for report in training.reports():
            tune.report(report)
        tune.report(training.last_report())


@dataclass
class _Training:
    """Ray Train in a thread of its own, so that the trial's thread alone talks to Tune.

    `TuneReportCallback` would hand reports to a second thread, which waits for ever where the last of them
    meets the function's end.
    """

    task: TrialTask
    config: dict[str, Any]
    error: BaseException | None = None
    driver: str = field(default_factory=lambda: f"trial {uuid4().hex}")

    def __post_init__(self) -> None:
        # Named, so that others can tell whether this driver lives: the queue goes when it goes.
        self.queue = Queue(actor_options={"num_cpus": 0, "name": self.driver})

    def start(self) -> None:
        changes = {key: value for key, value in self.config.items() if key != NUMBER}
        self.recipe = override(self.task.recipe, changes)
        self.out = trial_folder(self.task.out, self.config[NUMBER])
        self.thread = Thread(target=self._fit, daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        recipe, dataset, views = self.recipe, self.task.dataset, self.task.views
        out, driver = self.out, self.driver

        def loop(session: Session) -> None:
            if session.rank == 0:
                note_workers(out, driver)
            train_classifier(recipe, dataset, session, **views)

        try:
            keep = recipe.classifier.keep_checkpoints
            tell = TellTrial(self.queue, self.task.metric, recipe.classifier.max_iters)
            export_model(fit_on_ray(loop, self.out, self.task.workers, keep, [tell]), self.out)
        except BaseException as error:
            self.error = error

    def reports(self) -> Iterator[dict[str, Any]]:
        """What the workers report, until training has ended."""
        alive = True
        while alive:
            alive = self.thread.is_alive()
            try:
                yield self.queue.get(timeout=0.5)
                alive = True
            except Empty:
                pass
        self.queue.shutdown()

    def last_report(self) -> dict[str, Any]:
        """The figures of the end, or the error."""
        if self.error is not None:
            told = next(iter(str(self.error).splitlines()), "") or "no message"
            error = f"{type(self.error).__name__}: {told}"
            return {self.task.metric: float("nan"), PERCENT: 100.0, ERROR: error}
        return make_report(load_history(self.out)[-1], self.task.metric, 100.0)


class TellTrial(UserCallback):
    """Sends reports that have the metric to the trial, but not that of the last iteration.

    At the end the workers go by themselves; the trial reports it afterwards.
    """

    def __init__(self, queue: Queue, metric: str, max_iters: int) -> None:
        self.queue, self.metric, self.max_iters = queue, metric, max_iters

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray Train's controller after each report of all workers."""
        first = metrics[0]
        if self.metric in first and first["iteration"] < self.max_iters:
            percent = 100 * first["iteration"] / self.max_iters
            self.queue.put(make_report(first, self.metric, percent))


def make_report(figures: dict[str, float], metric: str, percent: float) -> dict[str, Any]:
    """What Tune is told: what it compares trials by, and everything for the record."""
    return {metric: figures[metric], PERCENT: percent, FIGURES: figures}


def load_history(folder: Path) -> list[dict[str, float]]:
    """Every report of a training run that has ended."""
    return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["history"]
