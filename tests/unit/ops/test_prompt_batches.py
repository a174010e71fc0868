"""Prompt sets against plain loops, and the frame of SAM against segment_anything."""

import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from ray_wsss.ops.prompt_batches import bucket_by_count, pad_points, points_to_sam_frame


def slow_prompt_sets(peak_mask: torch.Tensor) -> dict[int, list[tuple[int, int, list[list[int]]]]]:
    """Number of points -> (image, class, points) in order."""
    sets: dict[int, list[tuple[int, int, list[list[int]]]]] = {}
    for b, image in enumerate(peak_mask):
        for c, plane in enumerate(image):
            points_yx = [[y, x] for y in range(plane.shape[0]) for x in range(plane.shape[1]) if plane[y, x]]
            if points_yx:
                sets.setdefault(len(points_yx), []).append((b, c, points_yx))
    return sets


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("density", [0.01, 0.05, 0.3])
def test_buckets_equal_reference(seed: int, density: float):
    generator = torch.Generator().manual_seed(seed)
    peak_mask = torch.rand(3, 4, 6, 7, generator=generator) < density
    buckets = bucket_by_count(peak_mask)
    expected = slow_prompt_sets(peak_mask)
    assert [bucket.points_yx.shape[1] for bucket in buckets] == sorted(expected)
    for bucket in buckets:
        rows = zip(bucket.image_index.tolist(), bucket.class_index.tolist(), bucket.points_yx.tolist())
        assert list(rows) == expected[bucket.points_yx.shape[1]]


def test_every_peak_is_in_one_bucket_once():
    peak_mask = torch.rand(3, 4, 6, 7, generator=torch.Generator().manual_seed(9)) < 0.1
    rebuilt = torch.zeros(peak_mask.shape, dtype=torch.int64)
    for bucket in bucket_by_count(peak_mask):
        y, x = bucket.points_yx.unbind(-1)
        where = (bucket.image_index[:, None].expand_as(y), bucket.class_index[:, None].expand_as(y), y, x)
        rebuilt.index_put_(where, torch.ones(()).long(), accumulate=True)
    assert torch.equal(rebuilt, peak_mask.long())


def test_no_peaks_no_buckets():
    assert bucket_by_count(torch.zeros(2, 3, 4, 4, dtype=torch.bool)) == []


@pytest.mark.parametrize("width", [1, 3, 7, 50])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 1.0])
def test_padded_points_are_the_first_of_each_map(width: int, density: float):
    peak_mask = torch.rand(9, 6, 7, generator=torch.Generator().manual_seed(2)) < density
    points_yx, valid = pad_points(peak_mask, width)
    assert points_yx.shape == (9, width, 2)
    for plane, points, there in zip(peak_mask, points_yx, valid):
        expected = plane.nonzero()[:width]
        assert torch.equal(points[: len(expected)], expected)
        assert not points[len(expected) :].any()
        assert there.tolist() == [True] * len(expected) + [False] * (width - len(expected))


def test_no_maps_have_no_points_to_pad():
    points_yx, valid = pad_points(torch.zeros(0, 4, 5, dtype=torch.bool), 3)
    assert (points_yx.shape, valid.shape) == ((0, 3, 2), (0, 3))


@pytest.mark.parametrize("image_hw", [(256, 256), (375, 500), (333, 217)])
@pytest.mark.parametrize("target_px", [1024, 128])
def test_sam_frame_equals_segment_anything(image_hw: tuple[int, int], target_px: int):
    generator = torch.Generator().manual_seed(1)
    points_yx = torch.stack(
        [torch.randint(0, side, (4, 3), generator=generator) for side in image_hw], dim=-1
    )
    sam_input_hw = ResizeLongestSide.get_preprocess_shape(*image_hw, target_px)
    points_xy = points_to_sam_frame(points_yx, image_hw, sam_input_hw)
    expected = ResizeLongestSide(target_px).apply_coords_torch(points_yx.flip(-1), image_hw)
    assert points_xy.dtype == torch.float32
    torch.testing.assert_close(points_xy, expected, rtol=0, atol=1e-4)
