"""SAM-Segment Contrasting (SSC): pixels of one SAM segment are drawn to what they have in common."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

BLOCK = 2**24
"""Similarities (pixels x segments, over the batch) that are in memory at a time: 64 MiB in float32."""


def segment_bounds(segments: Integer[Tensor, "B H W"]) -> tuple[int, int]:
    """The largest id, and the largest number of segments of an image; of a tensor on a GPU the host waits."""
    if not segments.numel():
        return 0, 0
    largest = int(segments.max())
    return largest, int(_seen(segments.flatten(1), largest).sum(1).max())


def ssc_loss(
    features: Float[Tensor, "B D h w"],
    segments: Integer[Tensor, "B H W"],
    temperature: float = 1.0,
    bounds: tuple[int, int] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each covered pixel's similarities to the segments of its own image.

    Features are resized to the segment map (bilinear, corners not aligned) and L2-normalised per pixel. A
    segment's prototype is the L2-normalised mean of its pixels' features and passes no gradient.

    Resized features are never made: resizing is linear, so similarities to prototypes are resized in their
    stead, lengths follow from products of neighbouring cells, and a segment's mean is a weighted sum of
    cells. A pixel then costs as much as there are segments, whatever D is. Nor are the similarities ever in
    memory as a whole: rows of pixels are computed, and computed again on the way back.

    Args:
        features: the classifier's features under its class maps.
        segments: ids of segments, any number per image, gaps allowed; 0 = uncovered, which counts neither as
            a pixel nor as a segment.
        temperature: divides the similarities, which are in [-1, 1]; more than 0.
        bounds: `segment_bounds` of these segments, or more, for instance from before they went to the GPU;
            found here where not given, and only then does the host wait.

    Returns:
        Mean over the covered pixels of the batch; 0, still with a graph, where there are none.
    """
    grid = _Grid.between((features.shape[2], features.shape[3]), segments)
    largest, most = segment_bounds(segments) if bounds is None else bounds
    places = max(1, most)
    targets = _renumber(segments.flatten(1), largest).view(segments.shape)
    lengths = grid.lengths(features)
    prototypes, present = _prototypes(features.detach(), targets, lengths.detach(), grid, places)
    # Where an image has fewer segments than another, the rest can't be chosen.
    bias = torch.zeros_like(present, dtype=features.dtype).masked_fill_(~present, -torch.inf)
    bias[:, 0] = torch.where(present.any(1), bias[:, 0], 0.0)  # an image without segments: all ignored
    products = torch.einsum("bnd,bdyx->bnyx", prototypes, features)
    rows = max(1, BLOCK // (len(features) * places * segments.shape[2]))
    total = features.sum() * 0
    for start in range(0, segments.shape[1], rows):
        part = slice(start, start + rows)
        block = checkpoint(
            _block_loss,
            products,
            grid.rows[part],
            grid.columns,
            lengths[:, part],
            targets[:, part],
            bias,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
        )
        assert isinstance(block, Tensor)
        total = total + block
    return total / (targets >= 0).sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Bilinear resizing from cells to pixels, an axis at a time: pixel = (1 - share) low + share high."""

    low_y: Integer[Tensor, " H"]
    high_y: Integer[Tensor, " H"]
    share_y: Float[Tensor, " H"]
    low_x: Integer[Tensor, " W"]
    high_x: Integer[Tensor, " W"]
    share_x: Float[Tensor, " W"]
    rows: Float[Tensor, "H h"]
    """The same as a matrix."""
    columns: Float[Tensor, "W w"]

    @classmethod
    def between(cls, cells_hw: tuple[int, int], pixels: Integer[Tensor, "B H W"]) -> "_Grid":
        y, x = (_axis(cells, pixels.shape[k], pixels.device) for k, cells in zip((1, 2), cells_hw))
        return cls(*y[:3], *x[:3], y[3], x[3])

    def corners(self) -> list[tuple[Tensor, Tensor, Float[Tensor, "H W"]]]:
        """The four cells of every pixel: rows (H,), columns (W,) and how much they count."""
        ys = ((self.low_y, 1 - self.share_y), (self.high_y, self.share_y))
        xs = ((self.low_x, 1 - self.share_x), (self.high_x, self.share_x))
        return [(y, x, wy[:, None] * wx) for y, wy in ys for x, wx in xs]

    def lengths(self, features: Float[Tensor, "B D h w"]) -> Float[Tensor, "B H W"]:
        """L2 norms of the resized features."""
        following = [torch.arange(1, side + 1, device=features.device) for side in features.shape[2:]]
        down, right = (index.clamp_(max=side - 1) for index, side in zip(following, features.shape[2:]))
        squares = [features, features[..., right], features[:, :, down], features[:, :, down][..., right]]
        weights = [weight for _, _, weight in self.corners()]
        total = None
        for a in range(4):
            for b in range(a, 4):
                product = (squares[a] * squares[b]).sum(1)[:, self.low_y][:, :, self.low_x]
                term = product * (weights[a] * weights[b] * (1 if a == b else 2))
                total = term if total is None else total + term
        assert total is not None
        return total.clamp(min=1e-24).sqrt()


def _axis(cells: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and higher cell of every pixel of an axis, the higher one's share, and all of it as a matrix."""
    at = ((torch.arange(pixels, device=device) + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=cells - 1)
    share = at - low
    matrix = torch.zeros(pixels, cells, device=device)
    matrix.scatter_add_(1, low[:, None], 1 - share[:, None]).scatter_add_(1, high[:, None], share[:, None])
    return low, high, share, matrix


def _seen(segments: Integer[Tensor, "B P"], largest: int) -> Bool[Tensor, "B S"]:
    """Which of the ids 0 .. `largest` each image has; 0, uncovered, counts as never seen."""
    seen = torch.zeros(len(segments), largest + 1, dtype=torch.bool, device=segments.device)
    seen.scatter_(1, segments.long(), True)
    seen[:, 0] = False
    return seen


def _renumber(segments: Integer[Tensor, "B P"], largest: int) -> Integer[Tensor, "B P"]:
    """Ids 0, 1, ... without gaps per image; -1 for uncovered pixels."""
    numbers = _seen(segments, largest).cumsum(1) - 1
    return numbers.gather(1, segments.long()).masked_fill(segments == 0, -1)


def _prototypes(
    features: Float[Tensor, "B D h w"],
    targets: Integer[Tensor, "B H W"],
    lengths: Float[Tensor, "B H W"],
    grid: _Grid,
    places: int,
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
    """Prototypes of the segments of every image, and which of the N = `places` are taken."""
    count, _, height, width = features.shape
    batch = torch.arange(count, device=features.device)[:, None, None]
    # Uncovered pixels go to a place of their own at the end, which is cut off.
    segment = torch.where(targets < 0, places, targets) + (places + 1) * batch
    shares = features.new_zeros(count * (places + 1) * height * width)
    for y, x, weight in grid.corners():
        cell = (segment * height + y[:, None]) * width + x
        shares.index_add_(0, cell.flatten(), (weight / lengths).flatten())
    shares = shares.view(count, places + 1, -1)[:, :places]
    taken = torch.zeros(count * (places + 1), dtype=torch.bool, device=features.device)
    taken[segment.flatten()] = True
    # The direction of a mean is that of the sum.
    prototypes = F.normalize(shares @ features.flatten(2).transpose(1, 2), dim=2)
    return prototypes, taken.view(count, places + 1)[:, :places]


def _block_loss(
    products: Tensor,
    rows: Tensor,
    columns: Tensor,
    lengths: Tensor,
    targets: Tensor,
    bias: Tensor,
    temperature: float,
) -> Tensor:
    resized = rows @ products @ columns.T  # (B, N, rows, W)
    similarities = resized / (lengths[:, None] * temperature) + bias[:, :, None, None]
    return F.cross_entropy(similarities, targets, ignore_index=-1, reduction="sum")
