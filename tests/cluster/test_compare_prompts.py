"""Kinds of prompts side by side, from the command to the picture."""

import json
from pathlib import Path

import pytest

from ray_wsss.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_compare_prompts(
    dataset: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["compare-prompts", "--preset", "demo", "--label.scales", "1.0", "--dataset", str(dataset)]
    command += ["--classifier", str(classifier), "--out", str(out)]
    assert main([*command, "--examples", "1"]) == 0
    assert "a box for each peak" in capsys.readouterr().out
    figures = json.loads((out / "metrics.json").read_text())
    annotated = {"annotated_points", "annotated_boxes"}
    assert set(figures["miou"]) == {"points", "box", "boxes", "mask"} | annotated
    assert len(set(figures["miou"].values())) == 6
    assert figures["cases"]["all"]["pairs"] > 0
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    first = (out / "figure.png").read_bytes()
    assert main([*command, "--images", "10900003"]) == 0
    assert (out / "figure.png").read_bytes() != first
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert main([*command, "--images", "nobody"]) == 1
    assert "--images nobody is not an image with ground truth" in capsys.readouterr().err
