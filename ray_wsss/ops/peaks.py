"""Local maxima of CAMs (the paper's LMF), equal to scikit-image's for every map of a batch at once."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KeepGlobalMaximum = Literal["always", "if_empty", "never"]


def find_peaks(
    cam: Float[Tensor, "*batch H W"], *, tau: float, min_distance_px: int, max_peaks: int | None = None
) -> Bool[Tensor, "*batch H W"]:
    """Mark the local maxima of each map.

    Per map the same pixels as `skimage.feature.peak_local_max(cam, min_distance=d, threshold_abs=tau,
    exclude_border=d, num_peaks=max_peaks)` with d = `min_distance_px`:

    - a peak is the maximum of its (2d+1) x (2d+1) window, strictly above `tau`, at least d from the border;
    - a constant map has none, nor has a map with a side of at most 2d;
    - of equal maxima closer than d (Chebyshev) the first in row-major order stays; exactly d apart, both do;
    - at most `max_peaks` stay, the highest; of equal ones the first in row-major order.

    Args:
        cam: maps without NaN; any number of leading axes.
        tau: the least value, exclusive (paper: 0.5).
        min_distance_px: d, in pixels of `cam`, at least 1 (paper: 10).
        max_peaks: the most peaks of a map, at least 1; None: no limit.

    Returns:
        True at peaks. Without `max_peaks` the host waits for a GPU once, to see whether any maxima tie; only
        maps with ties that are too close are then resolved one by one. With it the host never waits: that
        takes `max_peaks` passes over the maps, whatever is in them.

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
    # The border is dropped anyway, so only complete windows matter and no padding is needed.
    window_max = _window_max(_window_max(maps, 2 * d + 1, dim=-2), 2 * d + 1, dim=-1)
    lowest, highest = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    # Nothing is above infinity: that is how a constant map loses its peaks without a third pass.
    bound = torch.full_like(lowest, tau).masked_fill_(lowest == highest, torch.inf)
    candidates = (maps[:, d:-d, d:-d] == window_max) & (window_max > bound)
    inner = peaks.view(-1, height, width)[:, d:-d, d:-d]
    if max_peaks is None:
        inner.copy_(_space_out(candidates, d))
        return peaks
    if not maps.is_cuda:  # a CPU's host has nothing to wait for, and all those passes cost it more
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
    """Add the global maximum of present classes to their peaks, so that every class gets a prompt.

    Args:
        peak_mask: True at peaks.
        cam: the maps that the peaks were found in.
        image_labels: 1 for a class that is present, else 0; absent classes get nothing.
        mode: "always" (released code), "if_empty": only classes without a peak, or "never".

    Returns:
        A new mask. Of equal maxima the first in row-major order is taken, also where a map is all zero.
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
    """Maximum of every complete window of `window` values along `dim` (result: `window` - 1 shorter).

    Doubles the covered length (1, 2, 4, 8, 16, 21), so a window of 21 takes five passes per axis. max_pool2d
    reads all 441 values: about a hundred times slower on one CPU thread (64 maps of 256 px).
    """
    covered = 1
    while covered < window:
        step = min(covered, window - covered)
        length = values.shape[dim] - step
        values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        covered += step
    return values


def _space_out(candidates: Bool[Tensor, "M H W"], spacing: int) -> Bool[Tensor, "M H W"]:
    """Drop candidates closer than `spacing` to one that is kept, in skimage's greedy order.

    skimage goes from high to low. Two window maxima that are this close lie in each other's window, hence
    are equal, and equal ones go in row-major order: the values need not be looked at again.
    """
    if spacing == 1:
        return candidates
    for index in _find_crowded(candidates.nonzero().cpu(), spacing).tolist():
        candidates[index] = _space_out_one(candidates[index].cpu(), spacing).to(candidates.device)
    return candidates


def _find_crowded(points_myx: Int[Tensor, "N 3"], spacing: int) -> Int[Tensor, " K"]:
    """Find the maps (first column) that hold two points closer than `spacing`; points sorted row-major.

    Compares each point with its 1st, 2nd, ... successor until no pair is left in the same strip of rows. A
    map leaves as soon as it is known to be crowded, so plateaus don't prolong the loop.
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
    """Keep the first candidate in row-major order, drop those closer than `spacing` to it, and so on."""
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
    """Take the highest value of each map, drop those closer than `spacing` to it, and so on, `most` times.

    skimage's own order, but of all maps at once and without a look at any value: the number of passes is
    known beforehand, and one that finds a map empty takes nothing from it.

    Args:
        values: -inf where nothing is to be taken; not changed.
    """
    count, height, width = values.shape
    near_y, near_x = _nearer_than(spacing, height, values), _nearer_than(spacing, width, values)
    left = values.clone()
    taken = []
    for _ in range(most):
        highest, at = left.flatten(1).max(dim=1)  # of equal ones the first
        taken.append(torch.where(highest > -torch.inf, at, height * width))
        near = near_y[at // width, :, None] & near_x[at % width, None, :]
        left.masked_fill_(near, -torch.inf)
    # Where nothing was left goes to a place of its own at the end, which is cut off.
    kept = torch.zeros(count, height * width + 1, dtype=torch.bool, device=values.device)
    return kept.scatter_(1, torch.stack(taken, dim=1), True)[:, :-1].view(values.shape)


def _nearer_than(spacing: int, side: int, like: Tensor) -> Bool[Tensor, "S S"]:
    at = torch.arange(side, device=like.device)
    return (at[:, None] - at).abs() < spacing
