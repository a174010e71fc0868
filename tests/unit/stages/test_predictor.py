"""The segmenter's label maps against a slow reference that keeps every view."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ray_wsss.config import PredictConfig
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.store import load_segmenter
from ray_wsss.stages import segmenter_views
from ray_wsss.stages.predict import Predictor

SCENES = [make_scene(seed, 56, 72).image for seed in range(3)]


def reference(segmenter_dir, pixels, scales, flips, size_hw, image_hw) -> np.ndarray:
    """The mean of the views' probabilities at ``size_hw``, then at ``image_hw``, in float64."""
    model = load_segmenter(segmenter_dir)[0].double()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if size_hw != image_hw:
        image = F.interpolate(image, size_hw, mode="bilinear", antialias=True)
    image = image.double() / 255
    views = []
    for scale in scales:
        scaled_hw = tuple(round(side * scale) for side in size_hw)
        # Antialiasing changes nothing where an image grows.
        scaled = F.interpolate(image, scaled_hw, mode="bilinear", antialias=scale < 1)
        for flip in flips:
            logits = model.head(model.decoder([model.backbone(scaled.flip(-1) if flip else scaled)]))
            logits = logits.flip(-1) if flip else logits
            views.append(F.interpolate(logits, size_hw, mode="bilinear").softmax(1))
    mean = F.interpolate(torch.stack(views).mean(0), image_hw, mode="bilinear")
    return mean[0].argmax(0).numpy()


@torch.no_grad()
@pytest.mark.parametrize("max_side_px", [72, 60])
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_averaged_over_the_views(segmenter_dir, flip, max_side_px):
    scales, flips = (1.0, 1.5, 0.75), (False, True) if flip else (False,)
    config = PredictConfig(scales=scales, flip=flip, max_side_px=max_side_px)
    several, single = Predictor.load(segmenter_dir, config), Predictor.load(segmenter_dir, PredictConfig())
    size_hw = (56, 72) if max_side_px == 72 else (47, 60)
    changed = 0
    for pixels in SCENES:
        found = several(pixels)
        expected = reference(segmenter_dir, pixels, scales, flips, size_hw, (56, 72))
        assert found.dtype == np.uint8
        assert (found != expected).mean() < 1e-3  # float32 may tip a tie
        assert len(np.unique(found)) > 1
        changed += (found != single(pixels)).sum()
    assert changed > 50


@torch.no_grad()
@pytest.mark.parametrize("name", PRESETS)
def test_one_view_is_the_plain_argmax(segmenter_dir, name):
    model, spec = load_segmenter(segmenter_dir)
    predictor = Predictor.load(segmenter_dir, PRESETS[name].predict)
    assert predictor.spec == spec
    for pixels in SCENES:
        cells = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
        logits = F.interpolate(cells, pixels.shape[:2], mode="bilinear")
        np.testing.assert_array_equal(predictor(pixels), logits[0].argmax(0).numpy())


@pytest.mark.parametrize("image_hw", [(1, 1), (3, 200), (33, 50), (150, 70)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_every_size_is_kept(segmenter_dir, image_hw, scales):
    pixels = make_scene(5, 160, 200).image[: image_hw[0], : image_hw[1]]
    config = PredictConfig(scales=scales, flip=True, max_side_px=64)
    assert Predictor.load(segmenter_dir, config)(pixels).shape == image_hw


def test_a_batch_is_as_one_by_one(segmenter_dir):
    predictor = Predictor.load(segmenter_dir, PredictConfig(flip=True))
    sizes = [(56, 72), (30, 40), (112, 144)]
    together = predictor.predict(SCENES, sizes)
    for pixels, image_hw, label_map in zip(SCENES, sizes, together):
        (alone,) = predictor.predict([pixels], [image_hw])
        assert alone.shape == image_hw
        assert (label_map != alone).mean() < 1e-3


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
def test_a_few_labels_at_a_time_give_the_same(segmenter_dir, monkeypatch, scales):
    whole = Predictor.load(segmenter_dir, PredictConfig(scales=scales))
    # Of 56 x 72 pixels, the scores of one label at a time; at twice the size too.
    little = Predictor.load(
        segmenter_dir, PredictConfig(scales=scales, max_pixels_per_pass=2 * 56 * 72 // 32)
    )
    sizes = [(56, 72), (30, 40), (112, 144)]
    expected = whole.predict(SCENES, sizes)
    seen = []
    resize = segmenter_views.resize_maps

    def count(maps, size_hw):
        seen.append(maps.shape[1])
        return resize(maps, size_hw)

    monkeypatch.setattr(segmenter_views, "resize_maps", count)
    found = little.predict(SCENES, sizes)
    assert set(seen) == {1, 2}
    for label_map, same in zip(found, expected):
        assert len(np.unique(same)) > 1
        np.testing.assert_array_equal(label_map, same)


@torch.no_grad()
def test_a_tie_goes_to_the_lower_label(segmenter_dir):
    for config in (PredictConfig(), PredictConfig(max_pixels_per_pass=1)):
        predictor = Predictor.load(segmenter_dir, config)
        last = predictor.model.head
        for name in ("weight", "bias"):
            last.get_parameter(name)[4] = last.get_parameter(name)[3]
        last.get_parameter("bias")[3:5] += 1e3
        labels = np.unique(predictor.predict(SCENES, [(56, 72)] * 3))
        assert labels.tolist() == [3]
