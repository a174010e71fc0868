"""Names in Ray's dashboard, and JSON log lines for tools that collect logs."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from ray_wsss.cli import main
from ray_wsss.cluster.names import title_of, training_name


@pytest.mark.parametrize(
    ("out", "title"),
    [("/runs/photos/label", "photos-label"), ("/labels", "labels"), ("/my runs/a+b", "my_runs-a_b")],
)
def test_a_run_is_called_after_its_folder(out: str, title: str) -> None:
    assert title_of(Path(out)) == title


def test_a_training_keeps_the_name_it_began_with(tmp_path: Path) -> None:
    """Version 0.1 called all of them ray_train, and a folder may have been moved."""
    out = tmp_path / "photos" / "classifier"
    assert training_name(out) == "photos-classifier"
    (out / "ray_train").mkdir(parents=True)
    assert training_name(out) == "photos-classifier"  # without a checkpoint there is nothing to resume
    (out / "ray_train" / "checkpoint_manager_snapshot.json").write_text("{}")
    assert training_name(out) == "ray_train"


def test_log_lines_as_json(
    write_dataset, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "scenes", 2)
    words = ["label", "--dataset", dataset, "--classifier", classifier, "--out", tmp_path / "out"]
    flags = ["--preset", "demo", "--label.scales", "1.0", "--sam-actors", "0", "--log-format", "json"]
    assert main([*map(str, words), *flags]) == 0
    assert main([*map(str, words), *flags]) == 0  # says that it is finished
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert any("is already finished" in line["message"] for line in lines)
    for line in lines:
        assert set(line) == {"time", "level", "logger", "message"}
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["logger"].startswith("ray_wsss")
