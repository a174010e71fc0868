"""A sweep: many trainings of the classifier, several at a time, on Ray Tune over Ray Train.

Tune's own record of an experiment is deleted, not restored. `Tuner.restore` of Ray 2.60 loses the results
that ASHA has seen (ray-project/ray#30838) and everything after the last snapshot, and it needs pickles. The
trials' own files have everything.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from ray_wsss.cluster.connect import ray_session, storage_of
from ray_wsss.cluster.growing import room_for
from ray_wsss.cluster.names import title_of
from ray_wsss.cluster.settle_sam import settle_sam
from ray_wsss.cluster.tune.concurrency import trials_at_once
from ray_wsss.cluster.tune.recorder import Recorder
from ray_wsss.cluster.tune.scheduler import make_scheduler
from ray_wsss.cluster.tune.search import AskOptuna, TrialSearch, check_optuna
from ray_wsss.cluster.tune.space import Space, check_space
from ray_wsss.cluster.tune.trial import TrialTask
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import LENGTHS, choose, flatten, override
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.config.sweep import Scheduler, SweepOptions
from ray_wsss.errors import UserError
from ray_wsss.runs.dependencies import check_validation, classifier_settings
from ray_wsss.runs.manifest import Output, dataset_hash
from ray_wsss.storage import remove_tree
from ray_wsss.sweeps.trials import ENDED, Trial, load_trials, trial_folder
from ray_wsss.training.classifier import count_trainable
from ray_wsss.training.length import resolve_epochs
from ray_wsss.training.loop import share_of_batch

log = logging.getLogger(__name__)


def run_sweep(
    recipe: Recipe,
    space: Space,
    *,
    dataset: Path,
    validation: Path,
    out: Path,
    options: SweepOptions,
    workers: Workers,
    cluster: Cluster,
    segments: Path | None = None,
    embeddings: Path | None = None,
    overwrite: bool | None = None,
) -> list[Trial]:
    """Train a classifier with each of many sets of values; running it again resumes it.

    Trials that have ended are kept; the others resume from their checkpoints. All trials read the same data
    set and views.

    Args:
        recipe: settings that the space does not vary, with the space's fixed settings applied unless the
            caller chose others.
        validation: data set with ground truth, on which trials are compared.
        workers: workers of each trial.
        segments, embeddings: as for `run_train_classifier`.

    Returns:
        All trials, each of which has ended.

    Raises:
        UserError: the space or the inputs don't fit, or the cluster has no room for a trial.
    """
    if workers.workers < 1:
        raise UserError(f"workers_per_trial is {workers.workers}; expected at least 1")
    views = {recipe.cpm.view, *(value for key, value in space.bounds() if key == "cpm.view")}
    recipe = settle_sam(
        recipe,
        out,
        "sweep",
        processes=workers,
        cluster=cluster,
        overwrite=overwrite,
        encodes=recipe.cpm.enabled and "crop" in views,
        embeddings=embeddings if recipe.cpm.enabled and "image" in views else None,
    )
    scheduler = options.scheduler or space.scheduler
    check_space(space, recipe)
    images = count_trainable(recipe, dataset, embeddings, tell=True)
    recipe = resolve_epochs(recipe, "classifier", images)
    _check_recipes(recipe, space, workers, scheduler, images)
    settings = _settings(recipe, space, dataset, segments, embeddings, workers.device)
    check_validation(validation, dataset)
    settings |= {"validation": str(validation.absolute()), "validation.sha256": dataset_hash(validation)}
    settings |= {"scheduler": scheduler, "search": options.search, "sample_seed": options.sample_seed}
    if options.search == "optuna":
        check_optuna(space)

    output = Output(out, "sweep", settings)
    state = output.begin(overwrite=overwrite)
    count = options.num_samples or space.num_samples
    task = TrialTask(
        recipe=recipe,
        images=images,
        dataset=dataset.absolute(),
        views=_absolute(segments=segments, embeddings=embeddings, validation=validation),
        out=out.absolute(),
        workers=workers,
        metric=space.metric,
    )
    total, waiting = _plan(task, space, options, count)
    if not waiting and total <= len(load_trials(out)):
        if state == "finished":
            output.log_finished(overwrite, ", a larger --num-samples adds to it")
    else:
        output.reopen()
        _set_up_tune()
        with (
            ray_session(cluster.address, verbose=cluster.verbose),
            room_for(
                count=workers.workers * (options.max_concurrent or 1),
                share=workers.share,
                least=workers.workers,
                what="sweep",
                refuse=False,  # `trials_at_once` says what a trial takes
                cluster=cluster,
            ),
        ):
            _tune(task, space, options, scheduler, waiting, total, verbose=cluster.verbose)
    trials = load_trials(out)
    left = [trial.name for trial in trials if trial.status not in ENDED]
    if left:
        raise UserError(
            f"{len(left)} trials have not ended, such as {left[0]}; run the same command again to resume them"
        )
    output.finish()
    return trials


def _absolute(**views: Path | None) -> dict[str, Path]:
    return {name: path.absolute() for name, path in views.items() if path is not None}


def _check_recipes(recipe: Recipe, space: Space, workers: Workers, scheduler: Scheduler, images: int) -> None:
    varied = {key for key, _ in space.bounds()} | set(space.domains)
    for key, epochs in LENGTHS.items():
        if key in varied and (epochs in varied or flatten(recipe)[epochs] is not None):
            raise UserError(f"{space.origin}: {key} is varied, but {epochs} decides it; expected one of them")
    for key, value in [("cpm.tau", recipe.cpm.tau), *space.bounds()]:
        config = resolve_epochs(choose(recipe, {key: value}), "classifier", images).classifier
        share_of_batch(config, workers.workers, "classifier")
        if scheduler == "asha" and config.validate_every * 2 > config.max_iters:
            raise UserError(
                f"classifier.validate_every is {config.validate_every}; expected at most half of "
                f"classifier.max_iters ({config.max_iters}), since asha compares trials while they train"
            )


def _settings(
    recipe: Recipe,
    space: Space,
    dataset: Path,
    segments: Path | None,
    embeddings: Path | None,
    device: str,
) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for view in [*(value for key, value in space.bounds() if key == "cpm.view"), recipe.cpm.view]:
        of_view = override(recipe, {"cpm.view": view})
        settings |= classifier_settings(of_view, dataset, segments, embeddings, device)
    config = recipe.classifier
    measured = {"validate_every": config.validate_every, "validate_images": config.validate_images}
    settings |= {f"classifier.{name}": value for name, value in measured.items()}
    swept = {key for key, _ in space.bounds()} | set(space.domains)
    # Iterations that differ from trial to trial, as their epochs or the batch size do.
    swept |= {
        key
        for key, epochs in LENGTHS.items()
        if epochs in swept or (settings.get(epochs) is not None and "classifier.batch_size" in swept)
    }
    settings = {key: value for key, value in settings.items() if key not in swept}
    return settings | space.describe() | {"metric": space.metric, "mode": space.mode, "grace": space.grace}


def _plan(task: TrialTask, space: Space, options: SweepOptions, count: int) -> tuple[int, list[Trial]]:
    """The number of trials in the sweep, and the trials still to run. New trials are written to disk."""
    out = task.out
    known = {trial.number: trial for trial in load_trials(out)}
    if options.search == "random":
        for number, params in enumerate(space.sample(count, options.sample_seed)):
            if number not in known:
                known[number] = Trial(number=number, params=params, max_iters=task.max_iters(params))
                known[number].save(out)
    for trial in known.values():
        if trial.status == "failed" and options.retry_failed:
            remove_tree(trial_folder(out, trial.number))
            trial.status, trial.error, trial.curve = "waiting", None, []
            trial.save(out)
    total = max(len(known), count)
    return total, [known[number] for number in sorted(known) if known[number].status not in ENDED]


def _tune(
    task: TrialTask,
    space: Space,
    options: SweepOptions,
    scheduler: Scheduler,
    waiting: Sequence[Trial],
    total: int,
    *,
    verbose: bool,
) -> None:
    at_once, arithmetic = trials_at_once(task.workers, options.max_concurrent)
    earlier = load_trials(task.out)
    to_run = total - sum(trial.status in ENDED for trial in earlier)
    log.info("%d trials, %d of them done already; %s", total, total - to_run, arithmetic)
    ask = None
    if options.search == "optuna":
        ask = AskOptuna(space, task.max_iters, earlier, options.sample_seed)
    folder = task.out / "tune"
    remove_tree(folder)
    tuner = tune.Tuner(
        task.trainable(),
        tune_config=tune.TuneConfig(
            num_samples=to_run,
            max_concurrent_trials=at_once,
            search_alg=TrialSearch(task.out, waiting, ask, total),
            scheduler=make_scheduler(scheduler, space, earlier),
        ),
        run_config=tune.RunConfig(
            name=title_of(task.out),
            **storage_of(folder),
            verbose=2 if verbose else 0,
            # Restarts drivers that died with their node; errors in training are not raised (`TrialTask.run`).
            failure_config=tune.FailureConfig(max_failures=task.workers.max_failures),
            callbacks=[Recorder(task.out, space.metric)],
        ),
    )
    tuner.fit()


def _set_up_tune() -> None:
    """Set the environment variables of Tune, and of a Ray that this process starts."""
    # A trial takes about six processes. With more than 4 times this number of processes, Ray 2.60 keeps
    # warning.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "64")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # `Recorder` writes instead
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the command at once
    # The newer output of Ray 2.60 prints tables even with verbose=0.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
