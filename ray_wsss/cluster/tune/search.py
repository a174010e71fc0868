"""The values that Tune tries next: drawn beforehand, or chosen by Optuna from the results so far."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from ray.tune.search import Searcher

from ray_wsss.cluster.tune.space import Space, plain
from ray_wsss.cluster.tune.trial import NUMBER
from ray_wsss.errors import UserError
from ray_wsss.sweeps.trials import ENDED, Trial, load_trial, load_trials

Search = Literal["random", "optuna"]


class TrialSearch(Searcher):
    """Hands out the waiting trials, then new ones.

    Its whole state is in the trials' own files, so a sweep resumes without any state of Tune or Optuna.

    Args:
        out: folder of the sweep.
        waiting: trials to run whose values are drawn already.
        ask: draws the values of further trials; None if there are none.
        total: number of trials in the sweep, at which drawing ends.
    """

    def __init__(self, out: Path, waiting: Sequence[Trial], ask: "AskOptuna | None", total: int) -> None:
        super().__init__(metric=None, mode=None)
        self.out, self.waiting, self.ask, self.total = out, list(waiting), ask, total
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The values and number of the next trial, which Tune calls ``trial_id``."""
        if self.waiting:
            trial = self.waiting.pop(0)
        elif self.ask is not None and (count := len(load_trials(self.out))) < self.total:
            trial = self.ask.draw(count, trial_id)
            trial.save(self.out)
        else:
            return cast(Any, Searcher.FINISHED)  # a string, which Ray 2.60 leaves out of the return type
        self.numbers[trial_id] = trial.number
        return {**trial.params, NUMBER: trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: only trials that have ended are learned from."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass the result of a trial on to ``ask``."""
        if self.ask is not None:
            self.ask.tell(trial_id, load_trial(self.out, self.numbers[trial_id]))

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the state is in the trials' files."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, as `save`."""


class AskOptuna:
    """Draws values with Optuna's default sampler (TPE), which learns from the trials that have ended.

    Args:
        max_iters: gives the iterations of a trial with some values.
        earlier: trials of the sweep so far.
        seed: seed of the sampler, to which 1,000 times the number of earlier trials is added.

    Raises:
        UserError: optuna is not installed, or the space is a grid.
    """

    def __init__(
        self,
        space: Space,
        max_iters: Callable[[Mapping[str, Any]], int],
        earlier: Sequence[Trial],
        seed: int,
    ) -> None:
        check_optuna(space)
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        domains: dict[str, Any] = OptunaSearch.convert_search_space(dict(space.domains))
        self.space, self.max_iters = space, max_iters
        self.optuna = OptunaSearch(
            domains, metric=space.metric, mode=space.mode, seed=seed + 1_000 * len(earlier)
        )
        self.drawn: set[str] = set()
        for trial in earlier:
            if trial.status in ENDED:
                self._add(trial)

    def draw(self, number: int, trial_id: str) -> Trial:
        """A new trial with values from Optuna."""
        drawn = self.optuna.suggest(trial_id)
        assert isinstance(drawn, dict)
        self.drawn.add(trial_id)
        params = {key: plain(value) for key, value in drawn.items()}
        return Trial(number=number, params=params, max_iters=self.max_iters(params))

    def tell(self, trial_id: str, trial: Trial) -> None:
        """Learn from a trial that has ended or was stopped."""
        if trial_id not in self.drawn:  # an earlier run drew its values
            self._add(trial)
            return
        score = None if trial.error else trial.score(self.space.metric)
        result = {self.space.metric: score} if score is not None else None
        self.optuna.on_trial_complete(trial_id, result, error=score is None)

    def _add(self, trial: Trial) -> None:
        score = trial.score(self.space.metric)
        if score is not None and not trial.error:
            self.optuna.add_evaluated_point(trial.params, score)


def check_optuna(space: Space) -> None:
    """Raise UserError if optuna is not installed, or if the space is a grid."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search optuna needs the package optuna: pip install 'ray-wsss[sweep]'")
    if space.grid:
        raise UserError(
            f"{space.origin}: {next(iter(space.grid))} is a grid, whose values are all tried; "
            "expected ranges or choices with --search optuna"
        )
