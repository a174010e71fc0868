"""The check of a GPU, on a CPU: it runs part by part, skips by name, goes on, and tells what it found."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_wsss.benchmark.gpu_check import run
from ray_wsss.benchmark.gpu_check.parts import PARTS
from ray_wsss.benchmark.gpu_check.run import GpuCheck
from ray_wsss.benchmark.gpu_check.table import judge, to_markdown
from ray_wsss.errors import UserError

JOB = Path(__file__).parents[3] / "jobs" / "gpu_check.py"


def check(work: Path, *parts: str, **options: Any) -> dict[str, dict[str, Any]]:
    options = {"minutes": 5, **options}
    return GpuCheck(device="cpu", small=True, work=work, parts=parts, **options).run(lambda line: None)


@pytest.fixture
def job() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check_job", JOB)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return job


def test_a_finished_part_is_kept_and_a_failed_one_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "dataset_16").write_text("in the way")
    first = check(tmp_path, "label", "peaks")
    assert first["label"]["status"] == "failed"
    assert "dataset_16" in first["label"]["reason"]
    assert first["peaks"]["status"] == "done"
    assert first["peaks"]["figures"]["equal"]
    assert first["peaks"]["figures"]["over_skimage"] > 0

    monkeypatch.setattr(run.subprocess, "run", None)  # nothing may be run again
    assert check(tmp_path, "peaks", minutes=0)["peaks"] == first["peaks"]
    with pytest.raises(TypeError):
        check(tmp_path, "peaks", again=True)


def test_without_time_a_part_waits_for_the_next_run(tmp_path):
    (result,) = check(tmp_path, "peaks", minutes=0).values()
    assert result["status"] == "not run"
    assert "the same command goes on" in result["reason"]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    parts = [replace(PARTS[0], needs=("torch", "no_such_package")), *PARTS[1:]]
    monkeypatch.setattr(run, "PARTS", parts)
    (result,) = check(tmp_path, "device").values()
    assert result == {"status": "skipped", "reason": "not installed: no_such_package"}
    (result,) = check(tmp_path, "memory").values()
    assert result == {"status": "skipped", "reason": "needs a GPU"}


def test_an_unknown_part(tmp_path):
    with pytest.raises(UserError, match="--part is 'peak'; expected one of: device, tests, "):
        check(tmp_path, "peak")


def test_goals_are_judged_by_the_card():
    figures = {
        "images_per_s": {"stock": 9.0, "eager": 70.0, "compiled": 85.0, "ray": None},
        "matmul_share": 0.5,
    }
    sam = {"status": "done", "seconds": 3.0, "figures": figures}
    h100 = {"name": "NVIDIA H100 80GB HBM3", "torch": "2", "matmul_tflops": {"bf16": 700.0}}
    device = {"status": "done", "seconds": 3.0, "figures": h100}
    peaks = {"status": "done", "seconds": 1.0, "figures": {"over_skimage": 40.0}}
    label = {"status": "failed", "seconds": 1.0, "reason": "a | b"}
    results = {"device": device, "sam_vit_h": sam, "peaks": peaks, "label": label}
    goals = judge(results)
    reached = {goal["goal"]: goal["reached"] for goal in goals}
    assert reached["ViT-H, images/s"] is True
    assert reached["ViT-B, images/s"] is None
    assert reached["peaks over scikit-image"] is False
    assert reached["prompting over the naive loop"] is None
    table = to_markdown(results, goals)
    assert "| ViT-H, images/s | 80 | 85 | yes |" in table
    assert "| label | failed | 1 | a / b |" in table
    device["figures"] = h100 | {"name": "Tesla T4"}
    assert judge(results)[0]["reached"] is None


def test_the_command(job, tmp_path, capsys):
    out = tmp_path / "check.json"
    options = ["--device", "cpu", "--work", str(tmp_path), "--json", str(out), "--part", "device", "memory"]
    assert job.main(options) == 0
    shown = capsys.readouterr()
    assert "TFLOP/s: fp32" in shown.out
    assert "memory: skipped (needs a GPU)" in shown.err
    parts = json.loads(out.read_text())["parts"]
    assert parts["device"]["figures"]["matmul_tflops"]["fp32"] > 0


def test_without_a_gpu_the_command_says_so(job, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert job.main([]) == 1
    assert capsys.readouterr().err == (
        "gpu_check.py: torch sees no GPU; expected a CUDA device, or --device cpu to try the command\n"
    )
