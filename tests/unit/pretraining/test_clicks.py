"""Measuring with one click per object."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from segment_anything import SamPredictor

from ray_wsss.config import SamConfig
from ray_wsss.models.sam.build import build_sam
from ray_wsss.ops.regions import inmost
from ray_wsss.pretraining.clicks import measure_clicks
from ray_wsss.pretraining.photos import Photo, read_coco


@pytest.fixture(scope="module")
def genuine_photos(genuine_data: Path) -> list[Photo]:
    return list(read_coco("gsc151", genuine_data / "photos_masks_eval" / "annotations" / "gsc151.json"))[:3]


def test_figures_are_those_of_the_predictor(genuine_photos: list[Photo]) -> None:
    sam = build_sam(SamConfig(name="tiny"))
    figures = measure_clicks(sam, genuine_photos)
    predictor: Any = SamPredictor(sam)
    for at, photo in enumerate(genuine_photos):
        truth = photo.mask(0)
        scored = ~photo.ignored(0)
        predictor.set_image(photo.image)
        row, column = inmost(truth)
        click = np.array([[column, row]]), np.array([1])
        masks, scores, _ = predictor.predict(*click, multimask_output=True)
        single, _, _ = predictor.predict(*click, multimask_output=False)

        def iou(mask: np.ndarray, truth: np.ndarray = truth, scored: np.ndarray = scored) -> float:
            return (mask & truth & scored).sum() / ((mask | truth) & scored).sum()

        assert figures.best_iou[at] == pytest.approx(iou(masks[scores.argmax()]), abs=0.01)
        assert figures.whole[at] == pytest.approx(iou(masks[2]), abs=0.01)
        assert figures.single[at] == pytest.approx(iou(single[0]), abs=0.01)
        assert figures.oracle[at] == pytest.approx(max(map(iou, masks)), abs=0.01)
        assert figures.predicted[at] == pytest.approx(scores.max(), abs=0.01)


def test_small_objects_are_left_out(photos: list[Photo]) -> None:
    sam = build_sam(SamConfig(name="tiny"))
    chosen = photos[:2]
    shares = np.concatenate([photo.areas / np.prod(photo.size_hw) for photo in chosen])
    least = float(np.median(shares))
    assert measure_clicks(sam, chosen, least).as_json()["objects"] == (shares >= least).sum()
