"""One trial of a sweep: a process that runs a training with Ray Train and reports to Tune."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from threading import Thread
from typing import Any

from ray import tune
from ray.train import UserCallback
from ray.util.queue import Queue

from ray_wsss.cluster.workers import fit_on_ray
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import choose
from ray_wsss.config.resources import Workers
from ray_wsss.sweeps.trials import trial_folder
from ray_wsss.training.checkpoints import PROGRESS, export_model
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.length import resolve_epochs
from ray_wsss.training.loop import Session

PERCENT = "percent"
"""Key of a trial's progress in % of its iterations; 100 is reported once, after its workers have ended."""
ERROR = "error"
"""Key of the reason why a trial failed, in its last report."""
FIGURES = "figures"
"""Key of all figures that the workers reported, including ``iteration``."""
NUMBER = "trial"
"""Key of a trial's number among its values."""


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """The inputs that all trials of a sweep share. All paths are absolute."""

    recipe: Recipe
    images: int
    """Number of images that trials are trained on."""
    dataset: Path
    views: dict[str, Path]
    """Folders ``segments``, ``embeddings`` and ``validation``, as for `train_classifier`."""
    out: Path
    """Folder of the sweep."""
    workers: Workers
    metric: str

    def trainable(self) -> Callable[[dict[str, Any]], None]:
        """The function that Tune calls with a trial's values."""

        def sweep_trial(config: dict[str, Any]) -> None:
            self.run(config)

        # 1 byte of memory, since Tune (Ray 2.60) refuses a trial without any resources. Ray Train itself
        # reserves the workers' CPUs, and a driver that took some of them could keep another trial's workers
        # waiting.
        return tune.with_resources(sweep_trial, {"memory": 1})

    def recipe_of(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with these values, its epochs resolved."""
        return resolve_epochs(choose(self.recipe, params), "classifier", self.images)

    def max_iters(self, params: Mapping[str, Any]) -> int:
        """Number of iterations of a trial with these values."""
        return self.recipe_of(params).classifier.max_iters

    def run(self, config: dict[str, Any]) -> None:
        """Train to the end, from the last checkpoint if there is one, and report the validation's figures.

        An error becomes the last report and is not raised, since Tune would retry a trial that fails again.
        """
        training = _Training(self, config)
        training.start()
        for report in training.reports():
            tune.report(report)
        tune.report(training.last_report())


@dataclass
class _Training:
    """Ray Train in a thread of its own, so that only the trial's thread talks to Tune.

    Ray's `TuneReportCallback` is not used. In Ray 2.60 it hands reports to a second thread, which waits for
    ever if the last report arrives while the trial's function ends.
    """

    task: TrialTask
    config: dict[str, Any]
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.queue = Queue(actor_options={"num_cpus": 0})

    def start(self) -> None:
        changes = {key: value for key, value in self.config.items() if key != NUMBER}
        self.recipe = self.task.recipe_of(changes)
        self.out = trial_folder(self.task.out, self.config[NUMBER])
        self.thread = Thread(target=self._fit, daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        recipe, dataset, views = self.recipe, self.task.dataset, self.task.views

        def loop(session: Session) -> None:
            train_classifier(recipe, dataset, session, **views, limit=None, until=None)

        try:
            keep = recipe.classifier.keep_checkpoints
            tell = TellTrial(self.queue, self.task.metric, recipe.classifier.max_iters)
            export_model(fit_on_ray(loop, self.out, self.task.workers, keep, [tell]), self.out)
        except BaseException as error:
            self.error = error

    def reports(self) -> Iterator[dict[str, Any]]:
        """Yield the workers' reports until training has ended."""
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
        """The final figures, or the error."""
        if self.error is not None:
            told = next(iter(str(self.error).splitlines()), "") or "no message"
            error = f"{type(self.error).__name__}: {told}"
            return {self.task.metric: float("nan"), PERCENT: 100.0, ERROR: error}
        return make_report(load_history(self.out)[-1], self.task.metric, 100.0)


class TellTrial(UserCallback):
    """Sends the reports that have the metric to the trial, except the report of the last iteration.

    The trial itself sends the last one, after the workers have ended.
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
    """A report for Tune: the metric that compares trials, the progress, and all figures for the record."""
    return {metric: figures[metric], PERCENT: percent, FIGURES: figures}


def load_history(folder: Path) -> list[dict[str, float]]:
    """All reports of a training run that has ended, by iteration."""
    return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["history"]
