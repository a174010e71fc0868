"""Peaks against scikit-image, pixel for pixel, on random and on adversarial maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.feature import peak_local_max
from torch.nn import functional as F

from ray_wsss.ops.peaks import _find_crowded, find_peaks, keep_global_maximum

LEVELS = np.array([0.0, 0.25, 0.5, 0.7, 0.75, 1.0], np.float32).tolist()
"""Values of random maps. NumPy 1 finds 0.7 itself unequal to its float32, which hypothesis would refuse."""


def skimage_peaks(
    cam: torch.Tensor, tau: float, min_distance_px: int, max_peaks: float = np.inf
) -> torch.Tensor:
    """The oracle, map by map."""
    mask = np.zeros(cam.shape, dtype=bool)
    for index in np.ndindex(*cam.shape[:-2]):
        peaks_yx = peak_local_max(
            cam[index].numpy(),
            min_distance=min_distance_px,
            threshold_abs=tau,
            exclude_border=min_distance_px,  # pyright: ignore[reportArgumentType] (inferred as bool)
            num_peaks=max_peaks,
        )
        mask[index][tuple(peaks_yx.T)] = True
    return torch.from_numpy(mask)


def assert_same_peaks(
    cam: torch.Tensor, tau: float, min_distance_px: int, max_peaks: int | None = None
) -> int:
    """Compare, and return the number of peaks, so that a caller can see that there were any."""
    found = find_peaks(cam, tau=tau, min_distance_px=min_distance_px, max_peaks=max_peaks)
    expected = skimage_peaks(cam, tau, min_distance_px, np.inf if max_peaks is None else max_peaks)
    wrong = (found != expected).nonzero()
    assert not len(wrong), f"{len(wrong)} of {expected.sum()} peaks differ, the first at {wrong[0].tolist()}"
    return int(expected.sum())


@pytest.fixture(params=["cpu", "gpu"])
def path(request, monkeypatch) -> str:
    """Both ways to limit the number of peaks, here on the CPU."""
    if request.param == "gpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return request.param


def smooth_maps(count: int, size_hw: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Maps like CAMs: a coarse random grid, resized, each scaled to a maximum of 1."""
    coarse = torch.rand(count, 1, 5, 6, generator=generator) ** 2
    maps = F.interpolate(coarse, size=size_hw, mode="bilinear")[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True)


SIZES_HW = [(24, 31), (40, 17), (9, 9), (1, 12), (13, 2), (33, 40)]


@pytest.mark.parametrize("min_distance_px", [1, 2, 3, 4, 7, 10])
def test_equal_to_skimage_on_noise_smooth_and_quantised_maps(min_distance_px: int):
    generator = torch.Generator().manual_seed(min_distance_px)
    maps_seen = peaks_seen = 0
    for size_hw in SIZES_HW:
        for levels in (None, 2, 3, 8):
            noise = torch.rand(5, *size_hw, generator=generator)
            maps = torch.cat([noise, smooth_maps(5, size_hw, generator)])
            if levels is not None:
                maps = (maps * levels).round() / levels
            peaks_seen += assert_same_peaks(maps, 0.5, min_distance_px)
            maps_seen += len(maps)
    assert maps_seen == 240  # x 6 distances: 1,440 maps
    assert peaks_seen > 100


@pytest.mark.parametrize("min_distance_px", [1, 2, 5])
def test_equal_to_skimage_on_plateaus(min_distance_px: int):
    """Random rectangles of few heights: wide ties, touching each other and the border."""
    generator = torch.Generator().manual_seed(10 + min_distance_px)
    maps = torch.zeros(60, 28, 30)
    for plane in maps:
        for _ in range(6):
            y, x, h, w, level = (int(torch.randint(1, 26, (), generator=generator)) for _ in range(5))
            plane[y : y + h, x : x + w] = (level % 4 + 1) / 4
    assert assert_same_peaks(maps, 0.4, min_distance_px) > 60


@settings(max_examples=300, derandomize=True)
@given(
    cam=arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14)),
        elements=st.sampled_from(LEVELS),
    ),
    tau=st.sampled_from([0.0, 0.5, 0.7, 1.0]),
    min_distance_px=st.integers(1, 8),
)
def test_equal_to_skimage_on_anything(cam: np.ndarray, tau: float, min_distance_px: int):
    assert_same_peaks(torch.from_numpy(cam), tau, min_distance_px)


@pytest.mark.parametrize("max_peaks", [1, 2, 5, 64])
@pytest.mark.parametrize("min_distance_px", [1, 2, 3, 7])
def test_the_highest_peaks_are_skimages_highest(path, max_peaks: int, min_distance_px: int):
    """On noise, smooth maps and plateaus, with more and with fewer peaks than that."""
    generator = torch.Generator().manual_seed(min_distance_px)
    counts = []
    for levels in (None, 3, 8):
        noise = torch.rand(4, 24, 31, generator=generator)
        maps = torch.cat([noise, smooth_maps(4, (24, 31), generator), torch.zeros(1, 24, 31)])
        if levels is not None:
            maps = (maps * levels).round() / levels
        counts.append(assert_same_peaks(maps, 0.4, min_distance_px, max_peaks))
    assert min(counts) > 0


@settings(max_examples=300, derandomize=True)
@given(
    cam=arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14)),
        elements=st.sampled_from(LEVELS),
    ),
    tau=st.sampled_from([0.0, 0.5, 0.7]),
    min_distance_px=st.integers(1, 8),
    max_peaks=st.sampled_from([1, 2, 3, 40]),
)
def test_the_highest_peaks_of_anything(cam: np.ndarray, tau: float, min_distance_px: int, max_peaks: int):
    assert_same_peaks(torch.from_numpy(cam), tau, min_distance_px, max_peaks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        assert_same_peaks(torch.from_numpy(cam), tau, min_distance_px, max_peaks)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_map_has_no_peak(value: float):
    cam = torch.full((2, 21, 21), value)
    cam[1, 4, 4] += 0.25
    assert assert_same_peaks(cam, 0.1, 3) >= 1
    assert not find_peaks(cam, tau=0.1, min_distance_px=3)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.1, 0.3, 0.5, 0.7])
def test_a_peak_of_exactly_tau_is_dropped(tau: float, dtype: torch.dtype):
    cam = torch.zeros(2, 11, 11, dtype=dtype)
    cam[0, 5, 5] = tau
    cam[1, 5, 5] = torch.nextafter(cam[0, 5, 5], torch.ones((), dtype=dtype))
    assert_same_peaks(cam, tau, 2)
    assert find_peaks(cam, tau=tau, min_distance_px=2).sum(dim=(1, 2)).tolist() == [0, 1]


def test_peaks_at_the_border_are_dropped():
    """One lone maximum at every pixel in turn: only those at least d from the border count."""
    cam = torch.eye(49).view(49, 7, 7)
    assert_same_peaks(cam, 0.5, 2)
    found = find_peaks(cam, tau=0.5, min_distance_px=2).any(dim=0)
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("gap_px", "num_peaks"), [(3, 1), (4, 2), (5, 2)])
def test_equal_maxima_stay_from_d_apart_on(gap_px: int, num_peaks: int):
    cam = torch.zeros(20, 20)
    cam[8, 6] = cam[8 + gap_px, 6 + 1] = 1
    assert assert_same_peaks(cam, 0.5, 4) == num_peaks
    assert find_peaks(cam, tau=0.5, min_distance_px=4)[8, 6]


def test_a_chain_of_ties_is_resolved_greedily():
    """The second falls to the first and so can't drop the third, though it is too close to it."""
    cam = torch.zeros(15, 30)
    cam[7, [6, 9, 12]] = 1
    found = find_peaks(cam, tau=0.5, min_distance_px=4)
    assert found.nonzero().tolist() == [[7, 6], [7, 12]]


@pytest.mark.parametrize("spacing", [2, 3, 5])
def test_only_maps_with_points_too_close_take_the_slow_path(spacing: int):
    points_myx = (torch.rand(200, 12, 12, generator=torch.Generator().manual_seed(5)) < 0.02).nonzero()
    expected = set()
    for m, y, x in points_myx.tolist():
        for n, v, u in points_myx.tolist():
            if m == n and (y, x) != (v, u) and max(abs(y - v), abs(x - u)) < spacing:
                expected.add(m)
    assert 0 < len(expected) < 200
    assert sorted(_find_crowded(points_myx, spacing).tolist()) == sorted(expected)


@pytest.mark.parametrize("axis", [-1, -2])
def test_flipping_a_map_flips_its_peaks(axis: int):
    """Holds without ties only: their order is row-major."""
    cam = torch.rand(20, 30, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    peaks = find_peaks(cam, tau=0.5, min_distance_px=3)
    assert peaks.any()
    assert torch.equal(find_peaks(cam.flip(axis), tau=0.5, min_distance_px=3), peaks.flip(axis))


def test_leading_axes_are_kept_and_the_maps_independent():
    cam = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(4)).requires_grad_()
    found = find_peaks(cam, tau=0.5, min_distance_px=2)
    alone = [[find_peaks(plane, tau=0.5, min_distance_px=2) for plane in image] for image in cam]
    assert torch.equal(found, torch.stack([torch.stack(image) for image in alone]))


def test_no_maps_have_no_peaks():
    assert find_peaks(torch.zeros(0, 3, 9, 9), tau=0.5, min_distance_px=2).shape == (0, 3, 9, 9)


def test_a_distance_below_one_is_refused():
    with pytest.raises(ValueError, match="min_distance_px is 0"):
        find_peaks(torch.zeros(9, 9), tau=0.5, min_distance_px=0)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="max_peaks is 0"):
        find_peaks(torch.zeros(9, 9), tau=0.5, min_distance_px=1, max_peaks=0)


@pytest.fixture
def three_classes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class 0 has a peak apart from its maximum, class 1 is present and all zero, class 2 is absent."""
    cam = torch.zeros(1, 3, 5, 6)
    cam[0, 0, 0, 5] = cam[0, 0, 4, 0] = 1
    cam[0, 0, 2, 2] = 0.8
    cam[0, 2, 3, 3] = 0.9
    peaks = torch.zeros(1, 3, 5, 6, dtype=torch.bool)
    peaks[0, 0, 2, 2] = True
    return peaks, cam, torch.tensor([[1.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("always", [[0, 0, 0, 5], [0, 0, 2, 2], [0, 1, 0, 0]]),
        ("if_empty", [[0, 0, 2, 2], [0, 1, 0, 0]]),
        ("never", [[0, 0, 2, 2]]),
    ],
)
def test_keep_global_maximum(three_classes, mode, expected: list[list[int]]):
    peaks, cam, image_labels = three_classes
    before = peaks.clone()
    kept = keep_global_maximum(peaks, cam, image_labels, mode)
    assert kept.nonzero().tolist() == expected
    assert torch.equal(peaks, before)
