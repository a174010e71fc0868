"""Training that is killed goes on from its last checkpoint, to the weights of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from ray_wsss.cluster.names import training_name
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Workers

CHANGES = {
    "classifier.max_iters": 12,
    "classifier.checkpoint_every": 4,
    "classifier.log_every": 1,
    "cpm.warmup_iters": 10,
}
FLAGS = [
    *("--preset", "demo", "--classifier.batch-size", "8", "--classifier.max-iters", "12"),
    *("--classifier.checkpoint-every", "4", "--classifier.log-every", "1", "--cpm.warmup-iters", "10"),
    *("--classifier.freeze-norm", "--classifier.optimiser", "sgd"),
]


def _command(dataset: Path, out: Path, workers: int) -> list[str]:
    paths = ["--dataset", str(dataset), "--out", str(out), "--workers", str(workers)]
    return [sys.executable, "-m", "ray_wsss.cli", "train-classifier", *paths, *FLAGS]


def _checkpoints(out: Path) -> list[Path]:
    return [path for path in out.rglob("checkpoint_*") if (path / "progress.json").exists()]


def _run_until_checkpoint(command: list[str], out: Path) -> None:
    """Run a command, and kill it and its children (not Ray's daemons) once it has a checkpoint."""
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not _checkpoints(out):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_killed_run_resumes(workers: int, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = _command(dataset, out, workers)
    _run_until_checkpoint(command, out)
    assert not (out / "model.safetensors").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = [line for line in again.stdout.splitlines() if line.startswith("classifier ") and "/12" in line]
    assert len(lines) <= 8
    assert lines[-1].startswith("classifier 12/12")
    assert again.stderr == ""

    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "already finished" in finished.stdout
    assert "/12" not in finished.stdout

    undisturbed = tmp_path / "undisturbed"
    subprocess.run(_command(dataset, undisturbed, workers), capture_output=True, check=True, timeout=300)
    _assert_identical(out, undisturbed)


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_is_replaced_and_nothing_changes(
    dataset: Path, small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a hand: Ray starts another worker, which goes on from the last checkpoint."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's worker has; the order of sums depends on it
    # Long enough for Ray to take note of a checkpoint before the end.
    recipe = override(small_recipe, CHANGES | {"classifier.max_iters": 60, "cpm.warmup_iters": 50})
    _train(recipe, dataset, tmp_path / "undisturbed", 0)
    torch.set_num_threads(threads)

    out = tmp_path / "out"
    victims: list[int] = []
    killer = Thread(target=lambda: victims.append(_kill_worker(out)))
    killer.start()
    _train(recipe, dataset, out, 1)
    killer.join()
    lines = [line.split()[1] for line in (out / "progress.log").read_text().splitlines()]
    repeated = [line for line in set(lines) if lines.count(line) > 1]
    assert len(victims) == 1
    assert not Path(f"/proc/{victims[0]}").exists()
    assert "1/60" not in repeated, "it goes on, and does not begin again"
    assert lines.index("60/60") == len(lines) - 1
    _assert_identical(out, tmp_path / "undisturbed")


def _train(recipe: Recipe, dataset: Path, out: Path, workers: int) -> None:
    run_train_classifier(
        recipe, dataset=dataset, out=out, workers=Workers(workers=workers), cluster=Cluster()
    )


def _kill_worker(out: Path) -> int:
    """Kill the training worker once Ray knows of a checkpoint."""
    deadline = time.monotonic() + 240
    known = out / training_name(out) / "checkpoint_manager_snapshot.json"
    while not known.exists() or "checkpoint_dir_name" not in known.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (pid,) = _workers()
    os.kill(pid, signal.SIGKILL)
    return pid


def _workers() -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (process / "cmdline").read_bytes()
            if title.startswith(b"ray::") and b"TrainWorker" in title:
                yield int(process.name)


def _assert_identical(out: Path, other: Path) -> None:
    """Weights bit for bit, and every loss that was reported."""
    expected = load_file(other / "model.safetensors")
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name
    ours, theirs = (json.loads((o / "progress.json").read_text())["history"] for o in (out, other))
    assert [{k: v for k, v in entry.items() if "loss" in k} for entry in ours] == [
        {k: v for k, v in entry.items() if "loss" in k} for entry in theirs
    ]
