"""The benchmark of models against their own predictors."""

from pathlib import Path

import pytest
from small_models import save_small

from ray_wsss.benchmark.predictor import PredictorBenchmark
from ray_wsss.config import SamConfig, SamName


def run(sam: SamConfig, work: Path, images: int = 3) -> dict:
    return PredictorBenchmark(sam=sam, device="cpu", images=images, repeats=1, work=work).run()


def test_a_small_model(tmp_path):
    folder = save_small("sam2.1_tiny", tmp_path / "small")
    sam = SamConfig(name="sam2.1_tiny", checkpoint=str(folder), precision="fp32", encode_batch_size=2)
    figures = run(sam, tmp_path)
    assert figures["weights"] == str(folder)
    assert figures["licence"] == "Apache-2.0"
    assert figures["embedding_mib_fp16"] == 2 * (32 * 8 * 8 + 8 * 16 * 16 + 4 * 32 * 32) / 2**20
    rates = figures["images_per_s"]
    assert min(rates.values()) > 0
    assert figures["ours_over_stock"] == rates["ours"] / rates["stock"]
    assert figures["max_logit_diff"] < 1e-3
    assert figures["mask_iou"] > 0.999


def test_lite_in_batches_against_one_image_at_a_time(tmp_path):
    figures = run(SamConfig(name="lite", precision="fp32", encode_batch_size=2), tmp_path, images=2)
    assert figures["weights"] == "the package's"
    assert min(figures["images_per_s"].values()) > 0
    assert figures["max_logit_diff"] < 1e-3
    assert figures["mask_iou"] > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam2.1_tiny", "sam2.1_base_plus", "mobile_sam"])
def test_full_size(name: SamName, tmp_path):
    """With random weights, on one image of 640 x 480 pixels."""
    figures = run(SamConfig(name=name, precision="fp32", encode_batch_size=1), tmp_path, images=1)
    assert figures["weights"] == "random"
    assert figures["logit_std"] > 0.1
    assert figures["max_logit_diff"] < 1e-3
    assert figures["mask_iou"] > 0.999
