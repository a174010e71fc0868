"""Pseudo labels against a per-pixel reference, stability against segment_anything."""

import numpy as np
import pytest
import torch
from segment_anything.utils.amg import calculate_stability_score
from torch.testing import assert_close

from ray_wsss.ops.pseudo_label import assign_labels, confidence_map, ignore_rim, mask_scores


def slow_labels(
    masks: torch.Tensor,
    confidence: torch.Tensor,
    cam: torch.Tensor,
    sets: list[tuple[int, int]],
    num_images: int,
) -> torch.Tensor:
    """Pixel by pixel, the definition of the pseudo label."""
    count, height, width = masks.shape
    means = [float(cam[n][masks[n]].mean()) if masks[n].any() else 0.0 for n in range(count)]
    label = torch.zeros(num_images, height, width, dtype=torch.uint8)
    for b in range(num_images):
        for y in range(height):
            for x in range(width):
                scored = [
                    (float(confidence[n, y, x]) * means[n], -sets[n][1])
                    for n in range(count)
                    if sets[n][0] == b and masks[n, y, x]
                ]
                if scored:
                    label[b, y, x] = -max(scored)[1] + 1
    return label


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """Overlapping masks of 3 images, in no order; the last image has none, one class has two masks."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 8, 9, generator=generator, dtype=torch.float64)
    logits[4] = -1
    cam = torch.rand(6, 8, 9, generator=generator, dtype=torch.float64)
    return logits > 0, logits, cam, [(1, 7), (0, 3), (0, 0), (1, 2), (1, 5), (0, 3)]


def label_of(scene, num_images: int = 3) -> torch.Tensor:
    masks, confidence, cam, sets = scene
    image_index, class_index = torch.tensor(sets).unbind(1)
    return assign_labels(mask_scores(masks, confidence, cam), image_index, class_index, num_images)


def test_labels_equal_reference(scene):
    label = label_of(scene)
    assert torch.equal(label, slow_labels(*scene, num_images=3))
    assert set(label[0].unique().tolist()) == {0, 1, 4}
    assert not label[2].any()


def test_scores_outside_the_mask_are_minus_infinity(scene):
    masks, confidence, cam, _ = scene
    scores = mask_scores(masks, confidence, cam)
    assert torch.equal(scores > -torch.inf, masks)
    assert_close(scores[0][masks[0]], confidence[0][masks[0]] * cam[0][masks[0]].mean())


def test_an_empty_mask_scores_nothing(scene):
    masks, confidence, cam, _ = scene
    assert not masks[4].any()
    assert (mask_scores(masks, confidence, cam)[4] == -torch.inf).all()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_of_equal_scores_the_lower_class_wins(order: list[int]):
    classes = torch.tensor([4, 9, 6])[order]
    label = assign_labels(torch.ones(3, 2, 2), torch.zeros(3, dtype=torch.int64), classes, 1)
    assert (label == 5).all()


def test_a_negative_score_still_beats_background():
    label = assign_labels(torch.full((1, 2, 2), -3.0), torch.tensor([0]), torch.tensor([1]), 1)
    assert (label == 2).all()


def test_no_masks_are_all_background():
    none = torch.zeros(0, dtype=torch.int64)
    label = assign_labels(torch.zeros(0, 4, 5), none, none, 2)
    assert torch.equal(label, torch.zeros(2, 4, 5, dtype=torch.uint8))


def test_the_last_class_that_fits_and_the_first_that_does_not():
    image_index = torch.tensor([0])
    assert (assign_labels(torch.ones(1, 2, 2), image_index, torch.tensor([253]), 1) == 254).all()
    with pytest.raises(ValueError, match=r"class_index spans 254..254; expected 0..253"):
        assign_labels(torch.ones(1, 2, 2), image_index, torch.tensor([254]), 1)


@pytest.mark.parametrize("image", [-1, 2])
def test_an_image_out_of_range_is_refused(image: int):
    with pytest.raises(ValueError, match="image_index spans"):
        assign_labels(torch.ones(1, 2, 2), torch.tensor([image]), torch.tensor([0]), 2)


@pytest.mark.parametrize("axis", [-1, -2])
def test_flipping_the_masks_flips_the_label(scene, axis: int):
    masks, confidence, cam, sets = scene
    flipped = (masks.flip(axis), confidence.flip(axis), cam.flip(axis), sets)
    assert torch.equal(label_of(flipped), label_of(scene).flip(axis))


def test_confidence_logit_and_iou():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    iou = torch.tensor([0.9, 0.5, 0.1])
    assert torch.equal(confidence_map("logit", logits, iou), logits)
    assert torch.equal(confidence_map("iou", logits, iou), iou.view(3, 1, 1).expand(3, 4, 5))


def test_confidence_stability_equals_segment_anything():
    logits = 2 * torch.randn(5, 32, 32, generator=torch.Generator().manual_seed(2))
    stability = confidence_map("stability", logits, torch.zeros(5))
    expected = calculate_stability_score(logits, mask_threshold=0.0, threshold_offset=1.0)
    assert 0 < expected.min() < expected.max() < 1
    assert_close(stability, expected.view(5, 1, 1).expand(5, 32, 32))


def test_stability_of_an_empty_mask_is_zero():
    assert not confidence_map("stability", torch.full((1, 4, 4), -9.0), torch.ones(1)).any()


@pytest.mark.parametrize(("dtype", "ignore"), [(torch.uint8, 255), (torch.int32, 65_535)])
@pytest.mark.parametrize("rim_px", [1, 3])
def test_the_rim_is_what_has_another_label_close_by(dtype, ignore, rim_px):
    """Pixel by pixel; ignored pixels make no border."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels = coarse.repeat_interleave(6, 1).repeat_interleave(5, 2).to(dtype)
    labels[0, 3:9, 2:9] = ignore
    expected = labels.clone()
    for k, y, x in np.ndindex(*labels.shape):
        rows = slice(max(0, y - rim_px), y + rim_px + 1)
        near = labels[k, rows, max(0, x - rim_px) : x + rim_px + 1].flatten().tolist()
        if len(set(near) - {ignore}) > 1:
            expected[k, y, x] = ignore
    assert torch.equal(ignore_rim(labels, rim_px), expected)
    assert (expected != labels).any()
    assert (expected != ignore).any()
