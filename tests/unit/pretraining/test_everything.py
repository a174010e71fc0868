"""Measuring how many objects segment-everything finds."""

from pathlib import Path
from typing import Any

import pytest
from segment_anything import SamAutomaticMaskGenerator

from ray_wsss.config import SamConfig, SegmentsConfig
from ray_wsss.models.sam.build import build_sam
from ray_wsss.pretraining.everything import FoundObjects, measure_everything
from ray_wsss.pretraining.photos import Photo, read_coco

THRESHOLDS: dict[str, Any] = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}


@pytest.fixture(scope="module")
def photos(genuine_data: Path) -> list[Photo]:
    """COCO photographs with several objects."""
    found = read_coco("coco", genuine_data / "coco" / "annotations" / "instances_val.json")
    return [photo for photo in found if len(photo.rles) > 3][:2]


def test_figures_are_those_of_the_generator(photos: list[Photo]) -> None:
    sam = build_sam(SamConfig(name="tiny"))
    found = measure_everything(sam, photos, SegmentsConfig(points_per_side=4, **THRESHOLDS), 0.01)
    generator = SamAutomaticMaskGenerator(sam, points_per_side=4, **THRESHOLDS)
    masks, ious = [], []
    for photo in photos:
        segments = [record["segmentation"] for record in generator.generate(photo.image)]
        masks.append(len(segments))
        for at in range(len(photo.rles)):
            truth = photo.mask(at)
            if truth.mean() >= 0.01:
                ious.append(max((s & truth).sum() / (s | truth).sum() for s in segments))
    assert min(masks) > 0
    assert len(ious) > 2
    assert found.masks == masks
    assert found.ious == pytest.approx(ious, abs=0.01)


def test_nothing_is_found_without_a_mask(photos: list[Photo]) -> None:
    strict = SegmentsConfig(points_per_side=1, pred_iou_thresh=1.0, stability_score_thresh=1.0)
    found = measure_everything(build_sam(SamConfig(name="tiny")), photos[:1], strict, 0.01)
    assert found.masks == [0]
    assert set(found.ious) == {0.0}


def test_summary() -> None:
    figures = FoundObjects(ious=[0.4, 0.5, 0.75, 0.95], masks=[3, 4]).as_json()
    assert figures == {
        "photographs": 2,
        "objects": 4,
        "recall_0.5": 0.75,
        "recall_0.75": 0.5,
        "mean_iou": 0.65,
        "masks": 3.5,
    }
