"""Segmenting everything in many images at once against segment_anything's generator, one image at a time."""

from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import ray_wsss.models.promptable.everything as everything
from ray_wsss.config import SegmentsConfig
from ray_wsss.config.promptable import MODELS
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.everything import FoundMasks, find_masks, masks_at_image_size
from ray_wsss.models.promptable.interface import Embeddings
from ray_wsss.ops.segments import paint_segments, rank_masks

SIZES_HW = [(96, 96), (60, 100), (150, 90), (128, 128), (210, 300)]
MOST_PX = SegmentsConfig().max_pixels_per_pass
LENIENT = SegmentsConfig(pred_iou_thresh=0.8, stability_score_thresh=0.8, box_nms_thresh=0.8)


def of_sam(**settings) -> SegmentsConfig:
    """Settings with the thresholds of segment_anything where none are given."""
    return SegmentsConfig(**settings).suiting(MODELS["tiny"])


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [make_scene(10_910_000 + n, *size_hw).image for n, size_hw in enumerate(SIZES_HW)]


@pytest.fixture(scope="module")
def embeddings(tiny_sam, images) -> Embeddings:
    return SamEncoder(tiny_sam)(images)


def full_masks(sam, found: FoundMasks, image_hw: tuple[int, int]) -> Tensor:
    return torch.cat(list(masks_at_image_size(sam, found, image_hw, MOST_PX)))


def assert_same_as_generator(sam, found: Iterable[FoundMasks], images, **settings) -> list[int]:
    """Mask by mask, in order. Returns the number of masks of each image."""
    generator = SamAutomaticMaskGenerator(sam, **settings)
    counts = []
    for masks, image in zip(found, images, strict=True):
        counts.append(len(masks.areas))
        expected = generator.generate(image)
        binary = full_masks(sam, masks, image.shape[:2])
        assert len(binary) == len(masks.areas) == len(expected)
        for n, record in enumerate(expected):
            assert masks.predicted_iou[n].item() == pytest.approx(record["predicted_iou"], abs=1e-5)
            stability = masks.stability_score[n].item()
            assert stability == pytest.approx(record["stability_score"], abs=1e-3, nan_ok=True)
            assert masks.points_xy[n].tolist() == record["point_coords"][0]
            x0, y0, x1, y1 = masks.boxes_xyxy[n].tolist()
            np.testing.assert_allclose([x0, y0, x1 - x0, y1 - y0], record["bbox"], atol=1)
            # A logit of almost 0 may fall on either side.
            assert (binary[n].numpy() != record["segmentation"]).sum() <= 2
            assert binary[n].sum() == masks.areas[n]
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        {"points_per_side": 8},
        {"points_per_side": 8, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.8},
        {"points_per_side": 7, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
        {"points_per_side": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.9, "box_nms_thresh": 0.3},
        {"points_per_side": 8, "stability_score_thresh": 0.6, "stability_score_offset": 3.0},
    ],
    ids=["defaults", "lenient", "no thresholds", "stability only", "wide offset"],
)
def test_equals_the_generator(tiny_sam, images, embeddings, settings):
    found = find_masks(tiny_sam, embeddings, SIZES_HW, of_sam(**settings), decode_batch_size=50)
    counts = assert_same_as_generator(tiny_sam, found, images, **settings)
    assert min(counts) >= 1
    assert max(counts) < 3 * settings["points_per_side"] ** 2 / 4


def test_each_filter_drops_masks(tiny_sam, embeddings):
    """Else the comparisons above would show little."""

    def count(**settings) -> int:
        config = replace(LENIENT, points_per_side=8, **settings)
        found = find_masks(tiny_sam, embeddings, SIZES_HW, config, decode_batch_size=64)
        return sum(len(masks.areas) for masks in found)

    kept = count()
    assert kept >= 10
    assert count(pred_iou_thresh=0.0) > kept
    assert count(stability_score_thresh=0.0) > kept
    assert count(box_nms_thresh=1.0) > 5 * kept


def test_no_mask_survives(tiny_sam, images, embeddings):
    settings = {"points_per_side": 4, "stability_score_thresh": 1.0, "stability_score_offset": 30.0}
    found = find_masks(tiny_sam, embeddings, SIZES_HW, of_sam(**settings), decode_batch_size=20)
    assert assert_same_as_generator(tiny_sam, found, images, **settings) == [0] * len(images)


def test_no_predicted_iou_is_high_enough(tiny_sam, embeddings, monkeypatch):
    """Every decoder pass is without candidates. (The tiny SAM's estimates can be above 1.)"""
    monkeypatch.setattr(tiny_sam.mask_decoder.iou_prediction_head.layers[-1].bias, "data", torch.zeros(4) - 9)
    config = of_sam(points_per_side=4)
    for masks in find_masks(tiny_sam, embeddings, SIZES_HW, config, decode_batch_size=20):
        assert masks.logits.shape == (0, 64, 64)
        assert masks.boxes_xyxy.shape == (0, 4)
        assert full_masks(tiny_sam, masks, (96, 80)).shape == (0, 96, 80)


def test_empty_masks_stay_and_paint_nothing(tiny_sam, images, embeddings, monkeypatch):
    """The generator's box suppression never drops a box without extent; its stability filter would."""
    monkeypatch.setattr(tiny_sam, "mask_threshold", 8.0)
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    config = of_sam(**settings)
    found = list(find_masks(tiny_sam, embeddings, SIZES_HW, config, decode_batch_size=20))
    assert_same_as_generator(tiny_sam, found, images, **settings)
    for masks, image_hw in zip(found, SIZES_HW):
        assert (masks.areas == 0).any()
        assert masks.stability_score.isnan().any()
        ranks = rank_masks("smallest_area", masks.areas, masks.predicted_iou)
        _, mask_index = paint_segments(
            masks_at_image_size(tiny_sam, masks, image_hw, MOST_PX), ranks, image_hw
        )
        assert (masks.areas[mask_index] > 0).all()


def test_batch_and_slice_sizes_dont_matter(tiny_sam, embeddings):
    config = replace(LENIENT, points_per_side=5)
    expected = list(find_masks(tiny_sam, embeddings, SIZES_HW, config, decode_batch_size=1000))
    for decode_batch_size, slice_px in [(1, 2**22), (7, 1), (25, 3 * 128**2), (32, 2**22)]:
        cut = replace(config, max_pixels_per_pass=slice_px)
        found = list(find_masks(tiny_sam, embeddings, SIZES_HW, cut, decode_batch_size=decode_batch_size))
        for masks, reference, image_hw in zip(found, expected, SIZES_HW, strict=True):
            assert torch.equal(masks.points_xy, reference.points_xy)
            assert_close(masks.logits, reference.logits, rtol=0, atol=1e-4)
            assert_close(masks.stability_score, reference.stability_score, rtol=0, atol=1e-3)
            slices = list(masks_at_image_size(tiny_sam, masks, image_hw, slice_px))
            assert all(part.numel() <= max(slice_px, image_hw[0] * image_hw[1]) for part in slices)
            assert (torch.cat(slices).sum((1, 2)) == masks.areas).all()


class CountOps(TorchDispatchMode):
    """Counts torch's operators, each of which is at least one kernel on a GPU; views launch none."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_few_kernels_per_candidate_on_a_gpu(tiny_sam):
    """Its slice size, here with the CPU; the logits are small, as only the number of masks matters."""
    torch.manual_seed(0)
    masks = 256
    logits = F.interpolate(torch.randn(masks, 1, 8, 8), (64, 64), mode="bicubic")[:, 0] * 4
    iou, points = torch.rand(masks), torch.rand(masks, 2, dtype=torch.float64)
    scale = (1024 // tiny_sam.image_encoder.img_size) ** 2  # this SAM's input is smaller

    def measure(slice_px: int) -> tuple[FoundMasks, float]:
        config = of_sam(max_pixels_per_pass=slice_px // scale)
        with torch.no_grad(), CountOps() as ops:
            found = everything._measure(tiny_sam, logits, iou, points, (96, 128), config)
            list(masks_at_image_size(tiny_sam, found, (96, 128), slice_px // scale))
        return found, ops.count / masks

    on_cpu, per_mask_cpu = measure(everything.CPU_SLICE_PX)
    on_gpu, per_mask_gpu = measure(MOST_PX)
    assert per_mask_cpu > 9
    assert per_mask_gpu < 1
    for field in fields(FoundMasks):
        ours, theirs = getattr(on_gpu, field.name), getattr(on_cpu, field.name)
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_an_image_alone_gives_the_same(tiny_sam, embeddings):
    config = replace(LENIENT, points_per_side=4)
    together = find_masks(tiny_sam, embeddings, SIZES_HW, config, decode_batch_size=20)
    for n, masks in enumerate(together):
        only = slice(n, n + 1)
        (alone,) = find_masks(tiny_sam, embeddings[only], SIZES_HW[only], config, decode_batch_size=16)
        assert torch.equal(alone.points_xy, masks.points_xy)
        assert_close(alone.logits, masks.logits, rtol=0, atol=1e-4)


def test_sizes_must_match_embeddings(tiny_sam, embeddings):
    config = of_sam(points_per_side=2)
    with pytest.raises(ValueError, match="images_hw has 2 sizes; expected 1"):
        find_masks(tiny_sam, embeddings[:1], SIZES_HW[:2], config, decode_batch_size=4)
    assert list(find_masks(tiny_sam, embeddings[:0], [], config, decode_batch_size=4)) == []
