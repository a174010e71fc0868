"""SAM-Segment Contrasting (SSC): a loss that pulls the features of a SAM segment's pixels to their mean."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

BLOCK = 2**24
"""Similarities (pixels x segments, over the batch) in memory at a time: 64 MiB in float32."""


def segment_bounds(segments: Integer[Tensor, "B H W"]) -> tuple[int, int]:
    """Largest id, and largest number of segments in one image; the host waits for a tensor on a GPU."""
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

    The resized features are never computed. Resizing is linear, so the similarities of feature cells to
    prototypes are resized instead, the lengths of resized features follow from products of neighbouring
    cells, and a segment's mean is a weighted sum of cells. The cost per pixel then depends on the number of
    segments, not on D. The similarities are never in memory as a whole: they are computed for a block of
    pixel rows at a time, and once more in the backward pass.

    Args:
        features: the classifier's features, from which its class maps are computed.
        segments: ids of segments, any number per image, gaps allowed; 0 = uncovered: such pixels are left out
            and form no segment.
        temperature: divides the similarities, which are in [-1, 1]; more than 0.
        bounds: `segment_bounds` of these segments, or larger values; best computed before the copy to a GPU.
            None: computed here, and the host waits for the GPU.

    Returns:
        Mean over the covered pixels of the batch; if there are none, a 0 that still has a graph.
    """
    grid = _Grid.between((features.shape[2], features.shape[3]), segments)
    largest, most = segment_bounds(segments) if bounds is None else bounds
    places = max(1, most)
    targets = _renumber(segments.flatten(1), largest).view(segments.shape)
    lengths = grid.lengths(features)
    prototypes, present = _prototypes(features.detach(), targets, lengths.detach(), grid, places)
    # An image with fewer segments than others has empty slots, which no pixel may choose.
    bias = torch.zeros_like(present, dtype=features.dtype).masked_fill_(~present, -torch.inf)
    # All slots at -inf would give NaN; the pixels of an image without segments are ignored anyway.
    bias[:, 0] = torch.where(present.any(1), bias[:, 0], 0.0)
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
            preserve_rng_state=False,  # no random numbers are drawn
        )
        assert isinstance(block, Tensor)
        total = total + block
    return total / (targets >= 0).sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Bilinear resizing from cells to pixels, per axis: pixel = (1 - share) * low + share * high."""

    low_y: Integer[Tensor, " H"]
    high_y: Integer[Tensor, " H"]
    share_y: Float[Tensor, " H"]
    low_x: Integer[Tensor, " W"]
    high_x: Integer[Tensor, " W"]
    share_x: Float[Tensor, " W"]
    rows: Float[Tensor, "H h"]
    """Resizing along y as a matrix."""
    columns: Float[Tensor, "W w"]
    """Resizing along x as a matrix."""

    @classmethod
    def between(cls, cells_hw: tuple[int, int], pixels: Integer[Tensor, "B H W"]) -> "_Grid":
        y, x = (_axis(cells, pixels.shape[k], pixels.device) for k, cells in zip((1, 2), cells_hw))
        return cls(*y[:3], *x[:3], y[3], x[3])

    def corners(self) -> list[tuple[Tensor, Tensor, Float[Tensor, "H W"]]]:
        """The four cells around every pixel: their rows (H,), columns (W,) and weights (H, W)."""
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
    """Low cell, high cell and share of the high cell for every pixel of an axis; and the resizing matrix."""
    at = ((torch.arange(pixels, device=device) + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=cells - 1)
    share = at - low
    matrix = torch.zeros(pixels, cells, device=device)
    matrix.scatter_add_(1, low[:, None], 1 - share[:, None]).scatter_add_(1, high[:, None], share[:, None])
    return low, high, share, matrix


def _seen(segments: Integer[Tensor, "B P"], largest: int) -> Bool[Tensor, "B S"]:
    """Which of the ids 0 .. `largest` each image has; id 0 (uncovered) counts as absent."""
    seen = torch.zeros(len(segments), largest + 1, dtype=torch.bool, device=segments.device)
    seen.scatter_(1, segments.long(), True)
    seen[:, 0] = False
    return seen


def _renumber(segments: Integer[Tensor, "B P"], largest: int) -> Integer[Tensor, "B P"]:
    """Renumber each image's segments to 0, 1, ... without gaps; uncovered pixels get -1."""
    numbers = _seen(segments, largest).cumsum(1) - 1
    return numbers.gather(1, segments.long()).masked_fill(segments == 0, -1)


def _prototypes(
    features: Float[Tensor, "B D h w"],
    targets: Integer[Tensor, "B H W"],
    lengths: Float[Tensor, "B H W"],
    grid: _Grid,
    places: int,
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
    """Prototypes of the segments of every image, and which of the N = `places` slots hold a segment."""
    count, _, height, width = features.shape
    batch = torch.arange(count, device=features.device)[:, None, None]
    # Uncovered pixels go to an extra slot at the end, which is cut off.
    segment = torch.where(targets < 0, places, targets) + (places + 1) * batch
    shares = features.new_zeros(count * (places + 1) * height * width)
    for y, x, weight in grid.corners():
        cell = (segment * height + y[:, None]) * width + x
        shares.index_add_(0, cell.flatten(), (weight / lengths).flatten())
    shares = shares.view(count, places + 1, -1)[:, :places]
    taken = torch.zeros(count * (places + 1), dtype=torch.bool, device=features.device)
    taken[segment.flatten()] = True
    # The sum has the direction of the mean, and only the direction counts.
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
    """Cross-entropy summed over the pixels of a block of rows."""
    resized = rows @ products @ columns.T  # (B, N, rows, W)
    similarities = resized / (lengths[:, None] * temperature) + bias[:, :, None, None]
    return F.cross_entropy(similarities, targets, ignore_index=-1, reduction="sum")
