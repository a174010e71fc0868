"""A sweep that is killed goes on; a node that is killed costs no trial that had ended."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_wsss.sweeps.trials import ENDED, Trial, load_trials

PATIENCE_S = 480
SPACE = """
from ray import tune
SPACE = {
    "classifier.lr": tune.grid_search([1e-3, 2e-3, 4e-3, 8e-3, 6e-3]),
    "classifier.max_iters": 24,
    "classifier.validate_every": 6,
    "classifier.checkpoint_every": 6,
    "classifier.log_every": 6,
    "classifier.batch_size": 8,
    "classifier.lr_warmup_iters": 0,
    "classifier.validate_images": 8,
    "cpm.warmup_iters": 12,
}
METRIC, MODE, PRESET, SCHEDULER = "val_miou_best_threshold", "max", "demo", "none"
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    return path


def command_of(space: Path, dataset: Path, out: Path) -> list[str]:
    data = ["--space", str(space), "--dataset", str(dataset), "--validation", str(dataset), "--out", str(out)]
    return [sys.executable, "-m", "ray_wsss.cli", "sweep", *data, "--max-concurrent", "2"]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def run_until(command: list[str], condition: Callable[[], bool]) -> None:
    """Run a command, and kill it and its children (not Ray's daemons) once something is so."""
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def half_done(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.status == "running" and trial.iteration >= 6]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_best_is_what_it_says(
    space: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    command = command_of(space, dataset, out)

    def some_ended_and_one_is_half_done() -> bool:
        trials = load_trials(out)
        return any(trial.status in ENDED for trial in trials) and bool(half_done(trials))

    run_until(command, some_ended_and_one_is_half_done)
    before = load_trials(out)
    ended = [out / "trials" / trial.name / "trial.json" for trial in before if trial.status in ENDED]
    kept = {path: path.read_bytes() for path in ended}
    printed = run(command)
    assert f"5 trials, {len(kept)} of them done already" in printed
    trials = load_trials(out)
    assert [trial.status for trial in trials] == ["finished"] * 5
    assert [[entry["iteration"] for entry in t.curve] for t in trials] == [[6, 12, 18, 24]] * 5
    assert {path: path.read_bytes() for path in ended} == kept
    for trial in half_done(before):
        iterations = _trained(out / "trials" / trial.name / "progress.log")
        assert iterations.count(6) == 1, "it went on from its checkpoint"
        assert iterations[-1] == 24

    best = max(trials, key=lambda trial: trial.score("val_miou_best_threshold") or 0)
    again = [sys.executable, "-m", "ray_wsss.cli", "train-classifier", "--config", str(out / "best.toml")]
    data = ["--dataset", str(dataset), "--validation", str(dataset), "--out", str(tmp_path / "again")]
    run([*again, *data, "--workers", "1"])
    history = json.loads((tmp_path / "again" / "progress.json").read_text())["history"]
    assert history[-1]["val_miou_best_threshold"] == pytest.approx(
        best.score("val_miou_best_threshold"), abs=1e-3
    )


def _trained(log: Path) -> list[int]:
    lines = log.read_text().splitlines()
    found = [re.match(r"classifier (\d+)/24  cls", line) for line in lines]
    return [int(match.group(1)) for match in found if match]


@pytest.mark.slow
def test_a_lost_node_costs_no_finished_trial(space: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    script = Path(__file__).with_name("sweep_and_lose_a_node.py")
    command = [sys.executable, str(script), str(space), str(dataset), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["nodes"] == 2
    assert told["ended"]
    for number, written in told["ended"].items():
        path = out / "trials" / f"trial_{int(number):04d}" / "trial.json"
        assert path.stat().st_mtime_ns == written
    assert [trial.status for trial in load_trials(out)] == ["finished"] * 5


@pytest.mark.slow
def test_optuna(space: Path, dataset: Path, tmp_path: Path) -> None:
    space.write_text(re.sub(r"tune.grid_search\(.*\)", "tune.uniform(1e-3, 1e-2)", SPACE))
    out = tmp_path / "sweep"
    command = [*command_of(space, dataset, out), "--search", "optuna"]
    run([*command, "--num-samples", "1"])
    (first,) = load_trials(out)
    assert "2 trials, 1 of them done already" in run([*command, "--num-samples", "2"])
    trials = load_trials(out)
    assert trials[0] == first
    assert [trial.status for trial in trials] == ["finished"] * 2
    assert trials[0].params != trials[1].params
