"""Local maxima of CAMs (the paper's LMF): all maps of a batch at once, with scikit-image's results."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KeepGlobalMaximum = Literal["always", "if_empty", "never"]


def find_peaks(
    cam: Float[Tensor, "*batch H W"], *, tau: float, min_distance_px: int, max_peaks: int | None = None
) -> Bool[Tensor, "*batch H W"]:
    """Mark the local maxima of each map.

    Each map gets the same peaks as from `skimage.feature.peak_local_max(cam, min_distance=d,
    threshold_abs=tau, exclude_border=d, num_peaks=max_peaks)` with d = `min_distance_px`:

    - a peak is the maximum of its (2d+1) x (2d+1) window, above `tau`, and at least d pixels from the border;
    - a constant map has no peaks; a map with a side of at most 2d has none either;
    - of equal maxima closer than d (Chebyshev distance), the first in row-major order stays; at a distance of
      exactly d, both stay;
    - of more than `max_peaks` peaks, the highest stay; of equal peaks, the first in row-major order.

    Args:
        cam: maps without NaN; any number of leading axes.
        tau: threshold; a peak is strictly above it (paper: 0.5).
        min_distance_px: d, in pixels of `cam`, at least 1 (paper: 10).
        max_peaks: most peaks per map, at least 1; None: no limit.

    Returns:
        True at peaks. Without `max_peaks` the host waits once for a GPU, to see whether any maxima tie; maps
        with ties closer than d are then resolved one by one. With `max_peaks` the host never waits: a GPU
        makes `max_peaks` passes over the maps, whatever their values.

    Raises:
        ValueError: `min_distance_px` or `max_peaks` is below 1.
    """
    for name, value in (("min_distance_px", min_distance_px), ("max_peaks", max_peaks)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    d = min_distance_px
    height, width = cam.shape[-2:]
    peaks = torch.zeros(cam.shape, dtype=torch.bool, device=cam.device)
    if cam.numel() == 0 or min(height, width) <= 2 * d:
        return peaks

    maps = cam.detach().reshape(-1, height, width)
    # No peak lies in the border, so only complete windows matter and no padding is needed.
    window_max = _window_max(_window_max(maps, 2 * d + 1, dim=-2), 2 * d + 1, dim=-1)
    lowest, highest = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    # No value is above infinity: this removes the peaks of constant maps without a third pass.
    bound = torch.full_like(lowest, tau).masked_fill_(lowest == highest, torch.inf)
    candidates = (maps[:, d:-d, d:-d] == window_max) & (window_max > bound)
    inner = peaks.view(-1, height, width)[:, d:-d, d:-d]
    if max_peaks is None:
        inner.copy_(_space_out(candidates, d))
        return peaks
    # On a CPU, reading the values needs no waiting and is cheaper than `max_peaks` passes.
    if not maps.is_cuda:
        candidates = _space_out(candidates, d)
        if candidates.flatten(1).sum(1).amax() <= max_peaks:
            inner.copy_(candidates)
            return peaks
    inner.copy_(_take_highest(window_max.masked_fill(~candidates, -torch.inf), d, max_peaks))
    return peaks


def keep_global_maximum(
    peak_mask: Bool[Tensor, "B C H W"],
    cam: Float[Tensor, "B C H W"],
    image_labels: Float[Tensor, "B C"],
    mode: KeepGlobalMaximum,
) -> Bool[Tensor, "B C H W"]:
    """Add the global maximum of each present class to its peaks, so that every class gets a prompt.

    Args:
        peak_mask: True at peaks.
        cam: the maps in which the peaks were found.
        image_labels: 1 for a class that is present, else 0; absent classes get no peak.
        mode: "always" (released code); "if_empty": only for classes without a peak; or "never".

    Returns:
        A new mask. Of equal maxima, the first in row-major order is taken, even in a map that is all zero.
    """
    if mode == "never":
        return peak_mask.clone()
    wanted = image_labels > 0
    if mode == "if_empty":
        wanted = wanted & ~peak_mask.flatten(2).any(dim=2)
    highest = cam.detach().flatten(2).argmax(dim=2, keepdim=True)
    added = torch.zeros_like(peak_mask).flatten(2).scatter_(2, highest, wanted[:, :, None])
    return peak_mask | added.view_as(peak_mask)


def _window_max(values: Float[Tensor, "..."], window: int, dim: int) -> Float[Tensor, "..."]:
    """Maximum of every complete window of `window` values along `dim`; the result is `window` - 1 shorter.

    Each pass doubles the covered length (1, 2, 4, 8, 16, 21), so a window of 21 takes five passes per axis.
    max_pool2d reads all 441 values, which is about a hundred times slower on one CPU thread (64 maps of 256
    px).
    """
    covered = 1
    while covered < window:
        step = min(covered, window - covered)
        length = values.shape[dim] - step
        values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        covered += step
    return values


def _space_out(candidates: Bool[Tensor, "M H W"], spacing: int) -> Bool[Tensor, "M H W"]:
    """Drop candidates closer than `spacing` to a kept one, in skimage's greedy order.

    skimage visits candidates from high to low. Two window maxima this close lie in each other's window, so
    they are equal, and skimage visits equal ones in row-major order: this function needs no values.
    """
    if spacing == 1:
        return candidates
    for index in _find_crowded(candidates.nonzero().cpu(), spacing).tolist():
        candidates[index] = _space_out_one(candidates[index].cpu(), spacing).to(candidates.device)
    return candidates


def _find_crowded(points_myx: Int[Tensor, "N 3"], spacing: int) -> Int[Tensor, " K"]:
    """Find the maps that hold two points closer than `spacing`.

    Compares each point with its 1st, 2nd, ... successor until no pair lies in the same strip of `spacing`
    rows. A map's points are removed as soon as the map is known to be crowded, so plateaus don't prolong the
    loop.

    Args:
        points_myx: map, y and x of each point, sorted row-major.

    Returns:
        Indices of the crowded maps.
    """
    crowded = points_myx.new_empty(0)
    shift = 1
    while len(points_myx) > shift:
        gap = points_myx[shift:] - points_myx[:-shift]
        same_strip = (gap[:, 0] == 0) & (gap[:, 1] < spacing)
        if not same_strip.any():
            break
        close = same_strip & (gap[:, 2].abs() < spacing)
        found = points_myx[shift:][close, 0].unique()
        crowded = torch.cat([crowded, found])
        points_myx = points_myx[~torch.isin(points_myx[:, 0], found)]
        shift += 1
    return crowded


def _space_out_one(candidates: Bool[Tensor, "H W"], spacing: int) -> Bool[Tensor, "H W"]:
    """Keep the first candidate in row-major order, drop those closer than `spacing` to it, and repeat."""
    left = candidates.clone().numpy()
    kept = torch.zeros_like(candidates)
    width = candidates.shape[1]
    start = 0
    while True:
        rest = left.reshape(-1)[start:]
        if not rest.any():
            return kept
        start += int(rest.argmax())
        y, x = divmod(start, width)
        kept[y, x] = True
        left[y : y + spacing, max(x - spacing + 1, 0) : x + spacing] = False


def _take_highest(values: Float[Tensor, "M H W"], spacing: int, most: int) -> Bool[Tensor, "M H W"]:
    """Take the highest value of each map and drop those closer than `spacing` to it, `most` times.

    This is skimage's order, but for all maps at once and without reading a value on the host: the number of
    passes is fixed, and a pass takes nothing from a map without candidates.

    Args:
        values: value of each candidate, -inf at other pixels; not changed.
    """
    count, height, width = values.shape
    near_y, near_x = _nearer_than(spacing, height, values), _nearer_than(spacing, width, values)
    left = values.clone()
    taken: list[Tensor] = []
    for _ in range(most):
        highest, at = left.flatten(1).max(dim=1)  # the first of equal values
        taken.append(torch.where(highest > -torch.inf, at, height * width))
        near = near_y[at // width, :, None] & near_x[at % width, None, :]
        left.masked_fill_(near, -torch.inf)
    # A pass that took nothing marks an extra pixel at the end, which is cut off.
    kept = torch.zeros(count, height * width + 1, dtype=torch.bool, device=values.device)
    return kept.scatter_(1, torch.stack(taken, dim=1), True)[:, :-1].view(values.shape)


def _nearer_than(spacing: int, side: int, like: Tensor) -> Bool[Tensor, "S S"]:
    """Which pairs of positions along a side are closer than `spacing`; on the device of `like`."""
    at = torch.arange(side, device=like.device)
    return (at[:, None] - at).abs() < spacing
