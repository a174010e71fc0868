"""Each numeric operation gives on the device what it gives on the CPU."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ray_wsss.data.scenes import make_scene
from ray_wsss.ops.cam import make_cam, merge_scales, normalise_cam
from ray_wsss.ops.cpm_loss import cpm_loss
from ray_wsss.ops.losses import classification_loss
from ray_wsss.ops.metrics import ConfusionMatrix, ThresholdCounts
from ray_wsss.ops.peaks import find_peaks, keep_global_maximum
from ray_wsss.ops.prompt_batches import pad_points, points_to_sam_frame
from ray_wsss.ops.pseudo_label import assign_labels, confidence_map, mask_scores
from ray_wsss.ops.resize import resize_maps, scale_images, to_tensor
from ray_wsss.ops.segments import paint_segments, rank_masks
from ray_wsss.ops.ssc import segment_bounds, ssc_loss

LABELS = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])


@pytest.fixture
def maps() -> Tensor:
    """Class maps (2, 3, 17, 23), of any sign."""
    return torch.randn(2, 3, 17, 23, generator=torch.Generator().manual_seed(0))


def smooth(count: int, side: int) -> Tensor:
    """Maps (count, side, side) in [0, 1] with many peaks, some of them equal."""
    coarse = torch.rand(1, count, side // 6, side // 6, generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].clamp(0, 1)
    return (fine * 50).round() / 50


@pytest.mark.parametrize("most", [None, 8])
@pytest.mark.parametrize("distance", [1, 4, 10])
def test_peaks(on_both, distance, most):
    here, there = on_both(find_peaks, smooth(20, 96), tau=0.3, min_distance_px=distance, max_peaks=most)
    assert here.sum() > 20
    assert torch.equal(here, there)


@pytest.mark.parametrize("mode", ["always", "if_empty", "never"])
def test_global_maxima(on_both, mode):
    cam = smooth(6, 48).view(2, 3, 48, 48)
    peaks = find_peaks(cam, tau=0.9, min_distance_px=4)
    here, there = on_both(keep_global_maximum, peaks, cam, LABELS, mode)
    assert torch.equal(here, there)


def test_cams(on_both, maps):
    assert_close(*on_both(normalise_cam, maps.relu(), LABELS))
    assert_close(*on_both(make_cam, maps, LABELS, (68, 92)))
    assert_close(*on_both(merge_scales, [maps, maps[..., ::2, ::2]], LABELS, (68, 92)))


def test_resizing(on_both, maps, device):
    images = [make_scene(seed, 64, 96).image for seed in range(2)]
    assert torch.equal(to_tensor(images, torch.device("cpu")), to_tensor(images, device).cpu())
    pixels = to_tensor(images, torch.device("cpu"))
    for scale in (0.5, 1.0, 1.75):
        assert_close(*on_both(scale_images, pixels, scale), atol=1e-5, rtol=1e-5)
    assert_close(*on_both(resize_maps, maps, (50, 61)))


@pytest.mark.parametrize("kind", ["logit", "iou", "stability"])
def test_pseudo_labels(on_both, kind):
    logits, cam = torch.randn(5, 40, 30, generator=torch.Generator().manual_seed(2)), torch.rand(5, 40, 30)
    iou = torch.linspace(0.5, 0.9, 5)
    here, there = on_both(confidence_map, kind, logits, iou)
    assert_close(here, there)
    scores = mask_scores(logits > 0, here.expand_as(logits), cam)
    assert_close(*on_both(mask_scores, logits > 0, here.expand_as(logits), cam))
    images, classes = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 2, 1, 1, 0])
    here, there = on_both(assign_labels, scores, images, classes, 2)
    assert torch.equal(here, there)


def test_prompts(on_both):
    peaks = find_peaks(smooth(6, 48), tau=0.3, min_distance_px=4)
    width = int(peaks.sum((1, 2)).max())
    here, there = on_both(pad_points, peaks, width)
    assert all(torch.equal(a, b) for a, b in zip(here, there))
    assert_close(*on_both(points_to_sam_frame, here[0], (48, 48), (683, 1024)))


def test_segment_maps(on_both):
    masks = torch.rand(9, 32, 32, generator=torch.Generator().manual_seed(3)) > 0.8

    def paint(masks: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        ranks = rank_masks("smallest_area", masks.sum((1, 2)), iou)
        painted = paint_segments(iter(masks.split(4)), ranks, (32, 32))
        return torch.as_tensor(painted[0]), torch.as_tensor(painted[1])

    here, there = on_both(paint, masks, torch.linspace(0.2, 1, 9))
    assert all(torch.equal(a, b) for a, b in zip(here, there))


def test_losses_and_their_gradients(on_both, maps):
    segments = torch.randint(0, 9, (2, 68, 92), generator=torch.Generator().manual_seed(4))
    pseudo_label = torch.randint(0, 3, (2, 17, 23), generator=torch.Generator().manual_seed(5)).byte()
    bounds = segment_bounds(segments)

    def losses(maps: Tensor, segments: Tensor, pseudo_label: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        maps = maps.clone().requires_grad_()
        cls = classification_loss(maps.mean((2, 3)), labels)
        ssc = ssc_loss(maps, segments, bounds=bounds)
        cpm = cpm_loss(make_cam(maps, labels, (17, 23)), pseudo_label, 0.15)
        (cls + ssc + cpm).backward()
        assert maps.grad is not None
        return torch.stack([cls, ssc, cpm]).detach(), maps.grad

    here, there = on_both(losses, maps, segments, pseudo_label, LABELS)
    assert_close(here[0], there[0], atol=1e-5, rtol=1e-5)
    assert_close(here[1], there[1], atol=1e-5, rtol=1e-4)


def test_counts(on_both):
    generator = torch.Generator().manual_seed(6)
    truth = torch.randint(0, 4, (3, 40, 40), generator=generator)
    truth[0, :5] = 255
    label = torch.randint(1, 4, (3, 40, 40), generator=generator)
    here, there = on_both(lambda a, b: ConfusionMatrix.from_labels(a, b, 4).counts, label, truth)
    assert torch.equal(here, there)
    score = torch.rand(3, 40, 40, generator=generator)
    thresholds = np.linspace(0.05, 0.95, 19).tolist()
    here, there = on_both(
        lambda s, a: ThresholdCounts.from_scores(s, a, truth, 4, thresholds).by_class(), score, label
    )
    assert torch.equal(here, there)
