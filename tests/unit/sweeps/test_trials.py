"""Trials of a sweep: written, read, ranked."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_wsss.sweeps.trials import Trial, load_trial, load_trials, rank, save_results, varied

METRIC = "val_miou"


def make_trial(number: int, score: float | None, status: Any = "finished", **changes: Any) -> Trial:
    iteration = changes.pop("iteration", 100)
    params = {"cpm.tau": number / 10, "classifier.seed": 0} | changes.pop("params", {})
    curve = [{"iteration": float(iteration), METRIC: score}] if score is not None else []
    return Trial(number=number, params=params, max_iters=100, status=status, curve=curve, **changes)


def test_round_trip(tmp_path: Path) -> None:
    trials = [make_trial(k, 0.1 * k, seconds=1.5) for k in (2, 0, 1)]
    trials[0].error = "FloatingPointError: cls is nan for scene_3"
    for trial in trials:
        trial.save(tmp_path)
    assert load_trials(tmp_path) == sorted(trials, key=lambda trial: trial.number)
    assert load_trial(tmp_path, 2) == trials[0]
    assert load_trials(tmp_path / "nowhere") == []


def test_a_resumed_run_repeats_reports() -> None:
    trial = make_trial(0, None)
    for iterations in ((10, 20, 30), (20, 30, 40)):
        trial.add({"iteration": float(i), METRIC: i + iterations[0]} for i in iterations)
    assert [(entry["iteration"], entry[METRIC]) for entry in trial.curve] == [
        (10, 20),
        (20, 40),
        (30, 50),
        (40, 60),
    ]
    assert (trial.iteration, trial.score(METRIC), trial.score("other")) == (40, 60, None)
    trial.add([{"iteration": 50.0, METRIC: math.nan}])
    assert trial.score(METRIC) is None


def test_ranking_puts_what_finished_first() -> None:
    trials = [
        make_trial(0, 0.2),
        make_trial(1, 0.9, "stopped", iteration=50),
        make_trial(2, 0.4),
        make_trial(3, None, "failed", error="broke"),
        make_trial(4, 0.1, "stopped", iteration=80),
        make_trial(5, 0.95, "stopped", iteration=50),
    ]
    assert [c.trials[0].number for c in rank(trials, METRIC, "max")] == [2, 0, 4, 5, 1, 3]
    assert [c.trials[0].number for c in rank(trials, METRIC, "min")] == [0, 2, 4, 1, 5, 3]


def test_seeds_are_averaged_and_a_failed_one_counts() -> None:
    trials = [
        make_trial(k, score, status, params={"cpm.tau": tau, "classifier.seed": k % 2})
        for k, (tau, score, status) in enumerate(
            [
                *[(0.3, 0.4, "finished"), (0.3, 0.6, "finished")],
                *[(0.5, 0.9, "finished"), (0.5, None, "failed")],
                *[(0.7, 0.5, "finished"), (0.7, 0.7, "finished")],
            ]
        )
    ]
    ranking = rank(trials, METRIC, "max")
    assert [c.params for c in ranking] == [{"cpm.tau": 0.7}, {"cpm.tau": 0.3}, {"cpm.tau": 0.5}]
    assert [c.score for c in ranking] == pytest.approx([0.6, 0.5, 0.9])
    assert ranking[0].spread == pytest.approx(0.1 * math.sqrt(2))
    assert [c.complete for c in ranking] == [True, True, False]
    assert varied(trials) == ["cpm.tau", "classifier.seed"]
    assert varied(trials[:2]) == ["classifier.seed"]
    assert varied(trials[:1]) == ["cpm.tau", "classifier.seed"]


def test_results_have_a_row_for_each_trial(tmp_path: Path) -> None:
    trials = [
        make_trial(0, 0.5, seconds=3.0, params={"cpm.view": "crop", "cpm.scales": [1.0]}),
        make_trial(1, None, "failed", error="broke", params={"cpm.view": "image", "cpm.scales": [1.0, 2.0]}),
    ]
    trials[0].add([{"iteration": 50.0, METRIC: 0.3, "loss_cls": 0.7}])
    save_results(trials, METRIC, tmp_path / "results.parquet")
    first, second = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert (first["trial"], first["folder"], first["status"]) == (0, "trials/trial_0000", "finished")
    assert (first["val_miou"], first["cpm.tau"], first["cpm.view"], first["seconds"]) == (
        0.5,
        0.0,
        "crop",
        3.0,
    )
    assert (first["curve_iteration"], first["curve_val_miou"]) == ([50, 100], [0.3, 0.5])
    assert (second["status"], second["error"], second["val_miou"]) == ("failed", "broke", None)
    assert (second["iteration"], second["curve_iteration"], second["cpm.scales"]) == (0, [], [1.0, 2.0])


def test_results_without_any_figures(tmp_path: Path) -> None:
    save_results([make_trial(0, None, "failed", params={"cpm.tau": "?"})], METRIC, tmp_path / "r.parquet")
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 1
