"""Training whose driver is killed goes on from its last checkpoint when the command is run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
    subprocess.run(_command(dataset, undisturbed, 0), capture_output=True, check=True, timeout=300)
    expected = load_file(undisturbed / "model.safetensors")
    for name, value in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4, msg=name)
