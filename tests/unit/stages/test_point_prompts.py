"""From CAM to pseudo label against one pair at a time: skimage's peaks, SamPredictor's masks, loops."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from skimage.feature import peak_local_max
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss.config import PromptingConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.ops.resize import to_tensor
from ray_wsss.stages.cams import find_cams
from ray_wsss.stages.point_prompts import aggregate, decode_pairs, find_prompts

HW = (64, 88)
PRESENT = [(0, 0), (0, 2), (2, 1), (3, 0), (3, 1), (3, 2)]  # (image, class); image 1 has none
CONFIG = PromptingConfig(tau=0.3, min_distance_px=4, scales=(1.0, 1.5))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [make_scene(seed, *HW).image for seed in range(4)]


@pytest.fixture(scope="module")
def image_labels() -> torch.Tensor:
    labels = torch.zeros(4, 3)
    for image, class_index in PRESENT:
        labels[image, class_index] = 1
    return labels


@pytest.fixture(scope="module")
def model(make_classifier):
    return make_classifier()


@torch.no_grad()
def slow_cam(
    model, image: np.ndarray, class_index: int, scales, flip: bool, raw: bool = False
) -> torch.Tensor:
    """The CAM; with ``raw`` the sum of class maps before ReLU instead."""
    total = torch.zeros(HW)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    for scale in scales:
        size = (round(HW[0] * scale), round(HW[1] * scale))
        view = F.interpolate(pixels, size, mode="bilinear", antialias=scale < 1)
        for mirrored in (False, True) if flip else (False,):
            class_map = model.to_class_maps(model(view.flip(-1) if mirrored else view).features)[
                :, class_index : class_index + 1
            ]
            full = F.interpolate(class_map if raw else class_map.relu(), HW, mode="bilinear")[0, 0]
            total += full.flip(-1) if mirrored else full
    return total if raw else total / (total.max() + 1e-5)


def slow_points(cam: np.ndarray, raw: np.ndarray, config: PromptingConfig) -> set[tuple[int, int]]:
    d = config.min_distance_px
    border: Any = d  # its stubs know only bool
    found = peak_local_max(cam, min_distance=d, threshold_abs=config.tau, exclude_border=border)
    points = {(int(y), int(x)) for y, x in found}
    if config.keep_global_max == "always" or (config.keep_global_max == "if_empty" and not points):
        y, x = np.unravel_index((cam if cam.any() else raw).argmax(), cam.shape)
        points.add((int(y), int(x)))
    return points


@dataclass
class SlowMask:
    logits: np.ndarray  # (H, W)
    iou: float


def slow_mask(predictor: SamPredictor, points_yx: set[tuple[int, int]], config: PromptingConfig) -> SlowMask:
    points_xy = np.array([(x, y) for y, x in sorted(points_yx)], float)
    # Declared as tensors, they are arrays.
    predicted: Any = predictor.predict(points_xy, np.ones(len(points_xy)), return_logits=True)
    logits, iou, _ = predicted
    best = 2 if config.mask_output != "best_iou" else int(np.argmax(iou))
    return SlowMask(logits[best] - config.mask_threshold, float(iou[best]))


def slow_label(cams: list[np.ndarray], masks: list[SlowMask], config: PromptingConfig) -> np.ndarray:
    """(4, H, W): per pixel the class of the highest confidence x mean CAM over the mask."""
    best = np.full((4, *HW), -np.inf)
    label = np.zeros((4, *HW), int)
    for (image, class_index), cam, mask in zip(PRESENT, cams, masks):
        inside = mask.logits > 0
        if not inside.any():
            continue
        confidence = {
            "logit": mask.logits,
            "iou": np.full(HW, mask.iou),
            "stability": np.full(HW, (mask.logits > 1).sum() / (mask.logits > -1).sum()),
        }[config.confidence]
        score = confidence * cam[inside].mean()
        wins = inside & (score > best[image])
        best[image][wins] = score[wins]
        label[image][wins] = class_index + 1
    return label


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_cams_equal_one_pair_at_a_time(model, images, image_labels, flip, scales):
    cams = find_cams(model, to_tensor(images, torch.device("cpu")), image_labels, scales=scales, flip=flip)
    assert list(zip(cams.image_index.tolist(), cams.class_index.tolist())) == PRESENT
    for cam, (image, class_index) in zip(cams.cam, PRESENT):
        assert_close(cam, slow_cam(model, images[image], class_index, scales, flip), rtol=0, atol=1e-5)


def test_cams_use_eval_mode_and_restore_the_models(make_classifier, images, image_labels):
    model = make_classifier().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = to_tensor(images, torch.device("cpu"))
    cams = find_cams(model, batch, image_labels, scales=(1.0,), flip=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = find_cams(model.eval(), batch, image_labels, scales=(1.0,), flip=False)
    assert torch.equal(cams.cam, again.cam)
    assert not model.training


def test_cams_leave_frozen_norms_frozen(make_classifier, images, image_labels):
    model = make_classifier().train()
    model.backbone.set_norm_eval()
    before = [module.training for module in model.modules()]
    assert set(before) == {True, False}
    find_cams(model, to_tensor(images, torch.device("cpu")), image_labels, scales=(1.0,), flip=False)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_global_max": "always"},
        {"mask_output": "best_iou", "confidence": "iou"},
        {"confidence": "stability", "tau": 0.6},
        {"mask_threshold": -1.5},
        {"mask_threshold": 2.0, "confidence": "stability"},
    ],
    ids=str,
)
def test_pseudo_labels_equal_one_pair_at_a_time(tiny_sam, model, images, image_labels, changes):
    config = PromptingConfig(**{"tau": 0.3, "min_distance_px": 4, "scales": (1.0, 1.5)} | changes)
    batch = to_tensor(images, torch.device("cpu"))
    cams = find_cams(model, batch, image_labels, scales=config.scales, flip=False)
    points = find_prompts(cams, config, guess=True)
    with torch.no_grad():
        (masks,) = decode_pairs(tiny_sam, SamEncoder(tiny_sam)(images), [cams], [points], config, 32)
        label, binary = aggregate(tiny_sam, cams, masks, 4, config)

    predictor = SamPredictor(tiny_sam)
    slow_masks = []
    for n, (image, class_index) in enumerate(PRESENT):
        raw = slow_cam(model, images[image], class_index, config.scales, flip=False, raw=True)
        expected = slow_points(cams.cam[n].numpy(), raw.numpy(), config)
        assert {tuple(p) for p in points[n].tolist()} == expected
        predictor.set_image(images[image])
        slow_masks.append(slow_mask(predictor, expected, config))
        assert float(masks.predicted_iou[n]) == pytest.approx(slow_masks[n].iou, abs=1e-4)
        assert (binary[n].numpy() != (slow_masks[n].logits > 0)).mean() < 1e-3
    assert len({len(p) for p in points}) > 1  # several buckets

    expected_label = slow_label(list(cams.cam.numpy()), slow_masks, config)
    assert (label.numpy() != expected_label).mean() < 1e-3  # rounding decides pixels on an edge
    assert not label[1].any()
    assert len(label.unique()) >= 3


def test_groups_of_several_sizes_share_decoder_calls(tiny_sam, model, images, image_labels):
    """Two groups decoded together equal each one decoded alone."""
    small = [image[:40, :56] for image in images]
    embeddings = SamEncoder(tiny_sam)(images + small)
    groups, alone = [], []
    for k, group in enumerate((images, small)):
        batch = to_tensor(group, torch.device("cpu"))
        cams = find_cams(model, batch, image_labels, scales=(1.0,), flip=False)
        points = find_prompts(cams, CONFIG, guess=True)
        alone += decode_pairs(tiny_sam, embeddings[4 * k : 4 * k + 4], [cams], [points], CONFIG, 32)
        shifted = replace(cams, image_index=cams.image_index + 4 * k)
        groups.append((shifted, points))
    together = decode_pairs(tiny_sam, embeddings, [g[0] for g in groups], [g[1] for g in groups], CONFIG, 3)
    for one, other in zip(together, alone):
        assert_close(one.logits, other.logits, rtol=0, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(one.points_yx, other.points_yx))


def test_without_peaks_there_is_no_prompt_and_all_is_background(tiny_sam, model, images, image_labels):
    config = PromptingConfig(tau=1.0, keep_global_max="never", scales=(1.0,))
    batch = to_tensor(images, torch.device("cpu"))
    cams = find_cams(model, batch, image_labels, scales=config.scales, flip=False)
    points = find_prompts(cams, config, guess=True)
    assert [tuple(p.shape) for p in points] == [(0, 2)] * len(PRESENT)
    (masks,) = decode_pairs(tiny_sam, SamEncoder(tiny_sam)(images), [cams], [points], CONFIG, 32)
    for confidence in ("logit", "iou", "stability"):
        some = PromptingConfig(confidence=confidence)
        label, binary = aggregate(tiny_sam, cams, masks, 4, some)
        assert not label.any()
        assert not binary.any()


def test_images_without_classes_are_background(tiny_sam, model, images):
    batch = to_tensor(images, torch.device("cpu"))
    cams = find_cams(model, batch, torch.zeros(4, 3), scales=(1.0,), flip=True)
    points = find_prompts(cams, CONFIG, guess=True)
    assert (len(cams.cam), points) == (0, [])
    (masks,) = decode_pairs(tiny_sam, SamEncoder(tiny_sam)(images), [cams], [points], CONFIG, 32)
    label, _ = aggregate(tiny_sam, cams, masks, 4, CONFIG)
    assert label.shape == (4, *HW)
    assert not label.any()


@torch.no_grad()
def test_class_that_activates_nowhere_is_prompted_at_its_best_guess(make_classifier, images):
    model = make_classifier()
    weight = model.to_class_maps.weight
    weight[0] = -weight[0].abs()  # features are non-negative: class 0 stays below zero
    batch, labels = to_tensor(images[:1], torch.device("cpu")), torch.tensor([[1.0, 0.0, 0.0]])
    cams = find_cams(model, batch, labels, scales=(1.0,), flip=False)
    assert cams.cam.max() == 0
    class_map = F.interpolate(model.to_class_maps(model(batch).features)[:, :1], HW, mode="bilinear")[0, 0]
    (points_yx,) = find_prompts(cams, CONFIG, guess=True)
    assert points_yx.tolist() == [list(np.unravel_index(class_map.numpy().argmax(), HW))]
    assert points_yx.tolist() != [[0, 0]]
    assert find_prompts(cams, CONFIG, guess=False)[0].tolist() == []  # no gradient would reach it
