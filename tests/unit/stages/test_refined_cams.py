"""Class maps that are refined where CAMs are made: every view by its own features and colours."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss.config import LabelConfig
from ray_wsss.models.classifier import Classifier
from ray_wsss.ops.refine_maps.colours import refine_by_colour
from ray_wsss.ops.refine_maps.features import spread_by_features
from ray_wsss.stages.cams import find_cams

PLAIN = LabelConfig(scales=(1.0, 0.5), flip=True)
IMAGES = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1.0, 0, 1], [0, 1, 0]])


@pytest.fixture(scope="module")
def model(make_classifier) -> Classifier:
    return make_classifier()


def maps_of(model: Classifier, config: LabelConfig) -> list[torch.Tensor]:
    return list(
        find_cams(model, IMAGES, LABELS, scales=config.scales, flip=config.flip, refine=config).class_maps
    )


def test_without_steps_nothing_changes(model):
    plain = find_cams(model, IMAGES, LABELS, scales=PLAIN.scales, flip=PLAIN.flip).class_maps
    assert all(torch.equal(a, b) for a, b in zip(maps_of(model, PLAIN), plain, strict=True))


@pytest.mark.parametrize("colour_steps", [0, 3])
def test_each_view_is_refined_by_what_it_shows(model, colour_steps):
    config = replace(PLAIN, affinity_steps=2, affinity_power=3.0, colour_steps=colour_steps)
    pairs = [(0, 0), (0, 2), (1, 1)]
    expected = []
    for scale in PLAIN.scales:
        view = IMAGES if scale == 1 else F.interpolate(IMAGES, (32, 40), mode="bilinear", antialias=True)
        for flip in (False, True):
            seen = view.flip(-1) if flip else view
            with torch.no_grad():
                cells = model.backbone(seen)
                raw = model.to_class_maps(model.to_features(cells).relu())
            maps = spread_by_features(raw.relu(), cells, steps=2, power=3.0)
            if colour_steps:
                quarter = (seen.shape[2] // 4, seen.shape[3] // 4)
                raw, maps = (F.interpolate(m, quarter, mode="bilinear") for m in (raw, maps))
                small = F.interpolate(seen, quarter, mode="bilinear", antialias=True)
                maps = refine_by_colour(maps, small, steps=colour_steps)
            own = torch.stack([maps[pair] if maps[pair].max() > 0 else raw[pair] for pair in pairs])
            expected.append(own.flip(-1) if flip else own)
    for ours, theirs in zip(maps_of(model, config), expected, strict=True):
        assert_close(ours[:, 0], theirs, rtol=1e-4, atol=1e-5)
