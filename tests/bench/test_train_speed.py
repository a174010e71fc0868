"""Training steps with the tiny SAM, by the benchmark's own command: ratios within one run.

pytest -m bench -s
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench

JOB = Path(__file__).parents[2] / "jobs" / "benchmark.py"


def test_training_steps(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    command = [sys.executable, str(JOB), "train", "--work", str(tmp_path), "--json", str(path)]
    subprocess.run(command, check=True)
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["pseudo_label_agreement"] > 0.99
    assert figures["crop_over_image"] > 1.5
    # Both run the same encoder on every crop, most of a step: that bounds what batching the rest gains.
    assert figures["naive_over_crop"] > 1.3
