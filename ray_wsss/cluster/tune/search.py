"""Which values Tune tries next: those that were drawn beforehand, or what Optuna makes of the results."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ray.tune.search import Searcher

from ray_wsss.cluster.tune.space import Space, plain
from ray_wsss.cluster.tune.trial import NUMBER
from ray_wsss.errors import UserError
from ray_wsss.sweeps.trials import ENDED, Trial, load_trial, load_trials

Search = Literal["random", "optuna"]


class TrialSearch(Searcher):
    """Hands out trials that wait, then new ones.

    The trials' own files are its state: nothing of Tune's or Optuna's has to survive for a sweep to go on.

    Args:
        out: folder of the sweep.
        waiting: trials that are to run, drawn already.
        ask: draws further ones.
        total: trials of the sweep, at which asking ends.
    """

    def __init__(self, out: Path, waiting: Sequence[Trial], ask: "AskOptuna | None", total: int) -> None:
        super().__init__(metric=None, mode=None)
        self.out, self.waiting, self.ask, self.total = out, list(waiting), ask, total
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial's values and number; Tune's id for it is noted."""
        if self.waiting:
            trial = self.waiting.pop(0)
        elif self.ask is not None and (count := len(load_trials(self.out))) < self.total:
            trial = self.ask.draw(count, trial_id)
            trial.save(self.out)
        else:
            return Searcher.FINISHED
        self.numbers[trial_id] = trial.number
        return {**trial.params, NUMBER: trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing is learned from a trial before it ends."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell what draws the next ones."""
        if self.ask is not None:
            self.ask.tell(trial_id, load_trial(self.out, self.numbers[trial_id]))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class AskOptuna:
    """Draws values with Optuna's default sampler (TPE), which learns from the trials that ended.

    Args:
        max_iters: of the recipe, for spaces that don't vary it.
        earlier: trials of the sweep so far.
        seed: of the sampler, together with the number of earlier trials.

    Raises:
        UserError: optuna is not installed, or the space is a grid.
    """

    def __init__(self, space: Space, max_iters: int, earlier: Sequence[Trial], seed: int) -> None:
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
        """A new trial."""
        drawn = self.optuna.suggest(trial_id)
        assert isinstance(drawn, dict)
        self.drawn.add(trial_id)
        params = {key: plain(value) for key, value in drawn.items()}
        max_iters = params.get("classifier.max_iters", self.max_iters)
        return Trial(number=number, params=params, max_iters=max_iters)

    def tell(self, trial_id: str, trial: Trial) -> None:
        """Learn from a trial that ended, or was stopped."""
        if trial_id not in self.drawn:  # but by an earlier run
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
    """Raise UserError where ``--search optuna`` can't be had."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search optuna needs the package optuna: pip install 'ray-wsss[sweep]'")
    if space.grid:
        raise UserError(
            f"{space.origin}: {next(iter(space.grid))} is a grid, of which every value is tried; "
            "expected ranges or choices with --search optuna"
        )
