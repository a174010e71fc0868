"""The stages on the device: rows as on the CPU, and recovery when the memory runs out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_wsss.config import EmbedConfig, LabelConfig, PredictConfig, SamConfig, SegmentsConfig
from ray_wsss.data.images import decode_mask, decode_segments
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.runs.resilient import run_stage
from ray_wsss.stages.embed import SamEmbedder
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.predict import Predictor
from ray_wsss.stages.segment_everything import SegmentEverything

SAM = SamConfig(name="tiny", precision="fp32")
LABEL = LabelConfig(tau=0.3, min_distance_px=4, scales=(0.5, 1.0), max_side_px=100)
SEGMENTS = SegmentsConfig(points_per_side=4, stability_score_thresh=0.8)


@pytest.fixture(scope="module")
def images(scene_dataset: Path) -> list[PreparedImage]:
    prepare = PrepareImages(max_side_px=100, frame=InputFrame(IMAGE_SIZE_PX))
    return [image for chunk in plan_chunks(scene_dataset) for image in prepare(chunk)]


def both_ways(
    stage: Callable[[str], Any], device: torch.device, images: list[PreparedImage]
) -> list[pa.Table]:
    """The rows of a stage on the CPU and on the device."""
    return [run_stage(stage(name), images)[0] for name in ("cpu", device.type)]


def agreement(tables: list[pa.Table], column: str, decode: Callable[[bytes], np.ndarray]) -> float:
    """Share of the pixels on which two tables of maps agree."""
    pairs = zip(*(table.column(column).to_pylist() for table in tables))
    return float(np.mean([(decode(a) == decode(b)).mean() for a, b in pairs]))


def test_labels(device, images, classifier_dir):
    tables = both_ways(lambda name: SamLabeller(LABEL, SAM, classifier_dir, name), device, images)
    assert agreement(tables, "pseudo_label", decode_mask) > 0.999
    points = [[s["points_xy"] for row in t.column("segments").to_pylist() for s in row] for t in tables]
    assert len(points[0]) > 14
    assert np.mean([a == b for a, b in zip(*points)]) > 0.9


def test_embeddings(device, images):
    tables = both_ways(lambda name: SamEmbedder(EmbedConfig(dtype="fp16"), SAM, name), device, images)
    stored = [np.frombuffer(b"".join(t.column("embedding").to_pylist()), np.float16) for t in tables]
    assert np.abs(stored[0].astype(float) - stored[1]).max() < 0.02


def test_segment_maps(device, images):
    tables = both_ways(lambda name: SegmentEverything(SEGMENTS, SAM, name), device, images)
    assert agreement(tables, "segment_map", decode_segments) > 0.99


def test_predictions(device, segmenter_dir):
    config, pixels = PredictConfig(scales=(0.5, 1.0), flip=True), make_scene(5, 64, 96).image
    here, there = (Predictor.load(segmenter_dir, config, name)(pixels) for name in ("cpu", device.type))
    assert len(np.unique(here)) > 1
    assert (here == there).mean() > 0.99


def test_labels_are_the_same_twice(device, images, classifier_dir):
    stage = SamLabeller(LABEL, SAM, classifier_dir, device.type)
    assert run_stage(stage, images)[0].equals(run_stage(stage, images)[0])


def test_a_batch_that_does_not_fit_is_halved(device, images, classifier_dir):
    """A limit that torch sets on its own memory is as hard as the card's."""
    if device.type == "cpu":
        pytest.skip("a CPU's memory has no such limit")
    large = [_enlarged(image, 400) for image in images[:8]]
    config = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0, 2.0), max_side_px=400)
    stage = SamLabeller(config, SAM, classifier_dir, device.type)
    expected, _ = run_stage(stage, large)
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    loaded = torch.cuda.memory_reserved()
    try:
        torch.cuda.set_per_process_memory_fraction((loaded + 0.6 * (needed - loaded)) / total)
        limited, _ = run_stage(stage, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert limited.column("error").null_count == len(large)
    assert agreement([expected, limited], "pseudo_label", decode_mask) > 0.999


def _enlarged(image: PreparedImage, side: int) -> PreparedImage:
    scene = make_scene(int(image.image_id), side, side).image
    return PreparedImage(
        image_id=image.image_id, image_labels=image.image_labels, pixels=scene, image_hw=(side, side)
    )
