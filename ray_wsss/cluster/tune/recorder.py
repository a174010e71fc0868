"""Records the progress of every trial on disk and in the log."""

import logging
import time
from pathlib import Path
from typing import Any

from ray import tune

from ray_wsss.cluster.connect import unwrap
from ray_wsss.cluster.tune.reclaim_workers import Reclaimer
from ray_wsss.cluster.tune.trial import ERROR, FIGURES, NUMBER, PERCENT, load_history
from ray_wsss.sweeps.table import describe_params, percent
from ray_wsss.sweeps.trials import Trial, load_trial, trial_folder
from ray_wsss.training.tensorboard import add_hparams

log = logging.getLogger(__name__)


class Recorder(tune.Callback):
    """Keeps the ``trial.json`` of every trial up to date, in the process that runs the sweep."""

    def __init__(self, out: Path, metric: str) -> None:
        self.out, self.metric = out, metric
        self.clocks: dict[int, float] = {}
        self.reclaimer = Reclaimer()

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Called by Tune after each round of its loop."""
        self.reclaimer.free()

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        """Called by Tune when all trials have ended."""
        self.reclaimer.free_all()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Called by Tune when a trial starts, or resumes after an interruption."""
        record = self._load(trial)
        word = "resumes" if record.curve else "starts"
        record.status = "running"
        record.save(self.out)
        _say(record, f"{word}: {describe_params(record.params)}")

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune when a trial reports figures or its error."""
        record = self._load(trial)
        record.error = result.get(ERROR)
        if record.error is None:
            record.add([result[FIGURES]])
            done = f"{record.iteration}/{record.max_iters}"
            _say(record, f"{done}  {self.metric} {percent(record.score(self.metric))}")
        record.save(self.out)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has ended, or when the scheduler has stopped it."""
        record = self._load(trial)
        if record.error is not None:
            record.status = "failed"
        elif (trial.last_result or {}).get(PERCENT) == 100:
            record.status = "finished"
            record.add(entry for entry in load_history(self._folder(record)) if self.metric in entry)
        else:
            record.status = "stopped"
        self._end(record)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Called by Tune when a trial's driver was lost and is started again."""
        record = self._load(trial)
        _say(record, "lost its process or node; it resumes from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Called by Tune when a trial's driver was lost too often."""
        record = self._load(trial)
        error = unwrap(trial.get_error() or RuntimeError("the trial's process was lost"))
        told = next((line for line in str(error).splitlines() if line), "")
        record.status, record.error = "failed", f"{type(error).__name__}: {told}"
        self._end(record)

    def _end(self, record: Trial) -> None:
        record.save(self.out)
        score = record.score(self.metric)
        if score is not None:
            add_hparams(self._folder(record), record.params, {self.metric: score}, record.iteration)
        if record.status == "failed":
            _say(record, f"failed: {record.error}")
        else:
            _say(record, f"{record.status} after {record.seconds:.0f} s")

    def _load(self, trial: Any) -> Trial:
        record = load_trial(self.out, trial.config[NUMBER])
        now = time.monotonic()
        record.seconds += now - self.clocks.get(record.number, now)
        self.clocks[record.number] = now
        return record

    def _folder(self, record: Trial) -> Path:
        return trial_folder(self.out, record.number)


def _say(record: Trial, what: str) -> None:
    log.info("trial %d  %s", record.number, what)
