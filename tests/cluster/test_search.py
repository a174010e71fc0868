"""What is tried next, and what is stopped, after an interruption as before it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from ray_wsss.cluster.tune.scheduler import make_scheduler
from ray_wsss.cluster.tune.search import AskOptuna, TrialSearch, check_optuna
from ray_wsss.cluster.tune.space import Space, load_space
from ray_wsss.cluster.tune.trial import NUMBER, PERCENT
from ray_wsss.errors import UserError
from ray_wsss.sweeps.trials import Trial, load_trials

SPACE = """
from ray import tune
SPACE = {"cpm.tau": tune.uniform(0.0, 1.0), "cpm.warmup_iters": tune.choice([10, 20])}
METRIC, MODE, GRACE = "val_miou", "max", 0.5
"""


@pytest.fixture
def space(tmp_path: Path) -> Space:
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    return load_space(path)


def make_trial(number: int, tau: float, scores: list[float], **changes: Any) -> Trial:
    curve = [{"iteration": 25.0 * (k + 1), "val_miou": score} for k, score in enumerate(scores)]
    params = {"cpm.tau": tau, "cpm.warmup_iters": 10}
    return Trial(number=number, params=params, max_iters=100, curve=curve, **changes)


def test_waiting_trials_come_in_their_order(space: Space, tmp_path: Path) -> None:
    waiting = [make_trial(k, k / 10, []) for k in (3, 5)]
    search = TrialSearch(tmp_path, waiting, None, total=6)
    assert [search.suggest(word) for word in "ab"] == [
        {**trial.params, NUMBER: trial.number} for trial in waiting
    ]
    assert search.suggest("c") == Searcher.FINISHED


def test_optuna_goes_on_from_the_trials_files(space: Space, tmp_path: Path) -> None:
    """The score is tau itself: what is drawn moves up, and an interruption loses nothing."""
    for run in range(3):
        earlier = load_trials(tmp_path)
        waiting = [trial for trial in earlier if trial.status == "waiting"]
        ask = AskOptuna(space, lambda _: 100, earlier, seed=1)
        search = TrialSearch(tmp_path, waiting, ask, total=40)
        for k in range(15):
            drawn = search.suggest(f"{run} {k}")
            if drawn == Searcher.FINISHED:
                break
            assert isinstance(drawn, dict)
            trial = load_trials(tmp_path)[drawn[NUMBER]]
            assert {**trial.params, NUMBER: trial.number} == drawn
            if k == 14:
                continue  # the interruption: this one has not been trained yet
            if k == 3:
                trial.status, trial.error = "failed", "broke"
            else:
                trial.status = "finished"
                trial.add([{"iteration": 100.0, "val_miou": trial.params["cpm.tau"]}])
            trial.save(tmp_path)
            search.on_trial_complete(f"{run} {k}", {})
    trials = load_trials(tmp_path)
    assert [trial.number for trial in trials] == list(range(40))
    taus = [trial.params["cpm.tau"] for trial in trials]
    assert sum(taus[:10]) / 10 < 0.65 < 0.8 < sum(taus[-10:]) / 10
    assert len(set(taus)) == 40


def test_optuna_takes_no_grid(tmp_path: Path) -> None:
    path = tmp_path / "grid.py"
    path.write_text(SPACE.replace("tune.choice(", "tune.grid_search("))
    with pytest.raises(UserError, match=r"grid.py: cpm.warmup_iters is a grid"):
        check_optuna(load_space(path))


def test_optuna_is_not_there(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package optuna: pip install 'ray-wsss\[sweep\]'"):
        check_optuna(space)


@pytest.mark.parametrize(("earlier", "decision"), [(0, "CONTINUE"), (3, "STOP")])
def test_asha_knows_what_came_before_the_interruption(space: Space, earlier: int, decision: str) -> None:
    """The first at its grace period has nothing to be compared with, unless others were there before."""
    trials = [make_trial(k, 0.1, [0.1, 0.5 + k / 10], status="stopped") for k in range(earlier)]
    scheduler = make_scheduler("asha", space, trials)
    trial: Any = SimpleNamespace(trial_id="now")
    controller: Any = None
    scheduler.on_trial_add(controller, trial)
    reports = [{PERCENT: percent, "val_miou": 0.4} for percent in (25.0, 50.0)]
    assert [scheduler.on_trial_result(controller, trial, r) for r in reports] == ["CONTINUE", decision]
