"""Every job is the command that it is named after."""

import runpy
import sys
from pathlib import Path

import pytest

from ray_wsss.cli import main

JOBS = Path(__file__).parents[2] / "jobs"
COMMANDS = {path.stem: path.stem.replace("_", "-") for path in JOBS.glob("*.py")} | {"tune": "sweep"}
OTHERS = {"ablation", "benchmark", "compare_recipes", "evaluate_clicks", "evaluate_everything", "gpu_check"}
OTHERS |= {"results", "train_lite_sam", "train_tiny_sam"}
"""With flags of their own."""


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - OTHERS))
def test_help_is_that_of_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([COMMANDS[name], "--help"])
    assert ended.value.code == 0
    expected = capsys.readouterr().out
    assert COMMANDS[name] in expected
    monkeypatch.setattr(sys, "argv", [str(JOBS / f"{name}.py"), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == expected


def test_a_job_that_fails_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["label.py", "--dataset", "nowhere", "--classifier", "no", "--out", "x"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / "label.py"), run_name="__main__")
    assert ended.value.code == 1
    assert "no is not an output of train-classifier" in capsys.readouterr().err.splitlines()[-1]
