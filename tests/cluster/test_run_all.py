"""Every stage in turn, and again: nothing is made twice."""

import json
from pathlib import Path

import pytest

from ray_wsss.cli import main
from ray_wsss.runs.history import load_runs

SCENES = 24
"""Of the fixture ``dataset``."""
FLAGS = [
    *("--preset", "demo", "--ssc", "--workers", "1", "--cpm.view", "image"),
    *("--classifier.batch-size", "8", "--classifier.max-iters", "4", "--cpm.warmup-iters", "2"),
    *("--segmenter.batch-size", "8", "--segmenter.max-iters", "2", "--label.scales", "1.0"),
]


@pytest.mark.usefixtures("ray_cluster")
def test_run_all(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    paths = ["--dataset", str(dataset), "--validation", str(dataset), "--out", str(out)]
    assert main(["run-all", *paths, *FLAGS]) == 0
    told = capsys.readouterr().out
    steps = ["embed", "segment-everything", "train-classifier", "label", "train-segmenter", "evaluate"]
    assert all(f"[{k}/6] {name}\n" in told for k, name in enumerate(steps, start=1))
    assert {"cam_fixed", "cam_best", "segmenter"} <= json.loads((out / "metrics.json").read_text()).keys()
    for folder in ("embeddings", "segments", "labels"):
        (record,) = load_runs(out / folder)
        assert record["figures"]["images"] == SCENES
        assert record["figures"]["seconds"].keys() >= {"decode", "write", "wait"}
        assert record["cluster"]["nodes"] == 1
    for folder in ("classifier", "segmenter"):
        assert [record["workers"]["workers"] for record in load_runs(out / folder)] == [1]
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert main(["run-all", *paths, *FLAGS]) == 0
    assert capsys.readouterr().out.count("is already finished") == 5
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(load_runs(out / "labels")) == 1
    assert main(["report", str(out), "--images", "3"]) == 0
    assert "not in it" not in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert all(f"<h4>{name}" in page for name in ("embed", "segment-everything", "label"))
    assert page.count("<h3>train-") == 2


def test_validation_of_other_classes(
    dataset: Path, foreign_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--dataset", str(dataset), "--validation", str(foreign_dataset), "--out", str(tmp_path / "out")]
    assert main(["run-all", *paths, *FLAGS]) == 1
    assert "has other classes than" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
