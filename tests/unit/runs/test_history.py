"""Records of runs: kept beside the manifest, whatever becomes of the run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_wsss.runs import history
from ray_wsss.runs.history import RUNS, git_commit, load_runs, recorded_run
from ray_wsss.runs.manifest import Output
from ray_wsss.version import __version__


def test_a_run_leaves_when_where_and_what(tmp_path: Path) -> None:
    with recorded_run(tmp_path, resources={"actors": 2}) as figures:
        figures["images"] = 7
    (record,) = load_runs(tmp_path)
    assert record["figures"] == {"images": 7}
    assert record["resources"] == {"actors": 2}
    assert record["seconds"] >= 0
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["versions"]["numpy"] == np.__version__
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["ray-wsss"] == __version__
    assert record["commit"] == git_commit()
    assert record["began"].endswith("+00:00")


def test_runs_add_up_and_the_oldest_go(tmp_path: Path) -> None:
    for k in range(53):
        with recorded_run(tmp_path) as figures:
            figures["k"] = k
    assert [record["figures"]["k"] for record in load_runs(tmp_path)] == list(range(3, 53))


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few"), recorded_run(tmp_path):
        raise ValueError("too few images\nsecond line")
    (record,) = load_runs(tmp_path)
    assert record["error"] == "ValueError: too few images"
    assert record["seconds"] is not None


def test_a_killed_run_stays_without_its_time(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from ray_wsss.runs.history import recorded_run\n"
        "with recorded_run(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (record,) = load_runs(tmp_path)
    assert record["seconds"] is None


def test_the_manifest_does_not_change(tmp_path: Path) -> None:
    """Later stages depend on its hash."""
    contents = []
    for name in ("one", "two"):
        output = Output(tmp_path / name, "label", {"label.tau": 0.5})
        output.begin()
        with recorded_run(output.out, resources={"actors": len(contents)}):
            pass
        output.finish()
        contents.append((output.out / "manifest.json").read_bytes())
        assert output.begin() == "finished"
    assert contents[0] == contents[1]


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "[1, 2]"])
def test_damaged_records_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / RUNS).write_text(content)
    assert load_runs(tmp_path) == []
    with recorded_run(tmp_path):
        pass
    assert len(json.loads((tmp_path / RUNS).read_text())) == 1


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a plus where files differ from it; of a package outside of any checkout nothing is known."""
    module = tmp_path / "ray_wsss" / "runs" / "history.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(history, "__file__", str(module))
    assert git_commit() is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit = git_commit()
    assert commit is not None
    assert len(commit) == 40
    module.write_text("changed")
    assert git_commit() == f"{commit}+"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
