"""The benchmark of SAM's encoder: its command's figures, and what it counts."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ray_wsss.benchmark.matmul import MatmulPeak, encoder_flops
from ray_wsss.benchmark.sam import compare
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.prepare import prepare_images
from ray_wsss.models.sam.build import build_sam

JOB = Path(__file__).parents[3] / "jobs" / "benchmark.py"


@pytest.fixture
def job(monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sam_benchmark_job", JOB)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, job)  # where the help's texts are looked up
    spec.loader.exec_module(job)
    return job


def test_the_command_without_ray_and_compiler(job, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found(name) if name != "ray" else None)
    path = tmp_path / "sam.json"
    options = ["--images", "4", "--batch-size", "2", "--repeats", "1", "--no-compile", "--profile"]
    options += ["--precision", "fp32"]
    assert job.main(["sam", *options, "--work", str(tmp_path), "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    rates = figures["images_per_s"]
    assert list(rates) == ["stock", "stock_batched", "eager", "compiled", "ray"]
    assert rates["compiled"] is rates["ray"] is None
    assert figures["not_measured"] == {"compiled": "--no-compile", "ray": "Ray is not installed"}
    assert min(rates["stock"], rates["stock_batched"], rates["eager"]) > 0
    assert figures["ours_over_stock"] == rates["eager"] / max(rates["stock"], rates["stock_batched"])
    assert [step["way"] for step in figures["steps"]] == ["stock", "stock_batched", "eager", "from_host"]
    for before, step in pairwise(figures["steps"]):
        assert step["gain"] == step["images_per_s"] / before["images_per_s"]
    flop = figures["gflop_per_image"] / figures["matmul_peak_gflops"]
    assert figures["matmul_share"] == pytest.approx(rates["eager"] * flop)
    assert figures["matmul_share"] > 0
    assert figures["precision"] == "fp32"
    assert figures["mask_iou"] == figures["trained"]["mask_iou"] == 1
    assert figures["max_logit_diff"] < 1e-3
    assert figures["peak_memory_mib"]["process"] > 0
    assert 0 < sum(op["share"] for op in figures["profile"]) <= 1


def test_compiled_and_in_less_precision(tmp_path, skip_if_emulated):
    """Steps build on one another; ``trained`` says how far their masks are from segment_anything's.

    In a process of its own, where no other test has changed torch's compiler.
    """
    skip_if_emulated("bf16")
    options = ["--images", "4", "--batch-size", "2", "--repeats", "1", "--no-ray", "--precision", "bf16"]
    command = [sys.executable, "-W", "ignore", str(JOB), "sam", *options, "--work", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert set(figures["not_measured"]) == {"ray"}, figures["not_measured"]
    ways = ["stock", "stock_batched", "fp32", "eager", "compiled", "from_host"]
    assert [step["way"] for step in figures["steps"]] == ways
    rates = figures["images_per_s"]
    ours, stock = (max(rates[name] for name in names) for names in (("eager", "compiled"), ways[:2]))
    assert figures["ours_over_stock"] == ours / stock
    assert 0.99 <= figures["trained"]["mask_iou"] < 1
    assert 1e-3 < figures["trained"]["max_logit_diff"] < 10


def test_batches_that_are_not_full(job, tmp_path, capsys):
    assert job.main(["sam", "--images", "3", "--batch-size", "2", "--work", str(tmp_path)]) == 1
    assert "expected at least 1 of each, and --images a multiple of --batch-size" in capsys.readouterr().err


def test_operations_by_hand(tiny_sam):
    """Patches, 6 blocks of which 3 attend to all 256 tokens and 3 to windows of 64, and the neck."""
    tokens, dim, heads = 256, 128, 4
    patches = tokens * 3 * 8 * 8 * dim
    linear = tokens * (3 + 1 + 4 + 4) * dim * dim
    neck = tokens * (dim * 64 + 64 * 64 * 9)
    attention = [2 * tokens * keys * dim for keys in (256, 64)]
    relative = [tokens * heads * 2 * side * (dim // heads) for side in (16, 8)]
    expected = patches + 6 * linear + neck + 3 * sum(attention) + 3 * sum(relative)
    assert encoder_flops(tiny_sam.image_encoder) == 2 * expected


def test_another_sam_is_seen(tiny_sam):
    """So a mask IoU of 1 says something."""
    sam = build_sam(PRESETS["demo"].sam)
    other = SamEncoder(sam)
    inputs = prepare_images(tiny_sam, [make_scene(seed).image for seed in range(4)])
    assert compare(tiny_sam, other, inputs)["mask_iou"] == 1
    for parameter in sam.image_encoder.neck[-1].parameters():
        parameter.neg_()
    figures = compare(tiny_sam, other, inputs)
    assert figures["mask_iou"] < 0.99
    assert figures["max_logit_diff"] > 0.1


def test_a_rate_is_below_what_any_cpu_does():
    rate = MatmulPeak(torch.device("cpu"), "fp32").rate(times=1)
    assert 1e8 < rate < 1e15


def test_matrices_stop_growing_once_a_product_takes_long(monkeypatch):
    """As in a precision that the processor emulates: here 1 ns for each multiplication."""
    monkeypatch.setattr(MatmulPeak, "_seconds", lambda peak: 1e-9 * peak.side**3)
    peak = MatmulPeak(torch.device("cpu"), "fp32")
    assert peak.side == 512  # 0.13 s; 256 take 0.017 s
    assert peak.rate() == pytest.approx(2e9)
    monkeypatch.setattr(MatmulPeak, "_seconds", lambda peak: 1e-13 * peak.side**3)
    assert MatmulPeak(torch.device("cpu"), "fp32").side == 2048
