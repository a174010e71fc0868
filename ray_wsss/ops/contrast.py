"""SAM-Segment Contrasting (SSC): pixels of one SAM segment are drawn to what they have in common."""

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

    The similarities are never in memory as a whole: blocks of pixels are computed, and computed again on the
    way back.

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
    size_hw = (segments.shape[1], segments.shape[2])
    pixels = F.normalize(F.interpolate(features, size_hw, mode="bilinear", align_corners=False), dim=1)
    pixels = pixels.flatten(2).transpose(1, 2)  # (B, P, D)
    largest, most = segment_bounds(segments) if bounds is None else bounds
    targets = _renumber(segments.flatten(1), largest)
    prototypes, present = _prototypes(pixels.detach(), targets, max(1, most))
    # Where an image has fewer segments than another, the rest can't be chosen.
    bias = torch.zeros_like(present, dtype=pixels.dtype).masked_fill_(~present, -torch.inf)
    bias[:, 0] = torch.where(present.any(1), bias[:, 0], 0.0)  # an image without segments: all ignored
    rows = max(1, BLOCK // (prototypes.shape[0] * prototypes.shape[1]))
    total = pixels.sum() * 0
    for start in range(0, pixels.shape[1], rows):
        part = slice(start, start + rows)
        block = checkpoint(
            _block_loss,
            pixels[:, part],
            targets[:, part],
            prototypes,
            bias,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
        )
        assert isinstance(block, Tensor)
        total = total + block
    return total / (targets >= 0).sum().clamp(min=1)


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
    pixels: Float[Tensor, "B P D"], targets: Integer[Tensor, "B P"], places: int
) -> tuple[Float[Tensor, "B N D"], Tensor]:
    """Prototypes of the segments of every image, and which of the N = `places` are taken (B, N) bool."""
    count, dim = len(pixels), pixels.shape[2]
    batch = torch.arange(count, device=pixels.device)[:, None]
    # Uncovered pixels go to a place of their own at the end, which is cut off.
    index = torch.where(targets < 0, places, targets) + (places + 1) * batch
    sums = pixels.new_zeros(count * (places + 1), dim).index_add_(0, index.flatten(), pixels.flatten(0, 1))
    taken = torch.zeros(len(sums), dtype=torch.bool, device=pixels.device)
    taken[index.flatten()] = True
    # The direction of a mean is that of the sum.
    prototypes = F.normalize(sums.view(count, places + 1, dim)[:, :places], dim=2)
    return prototypes, taken.view(count, places + 1)[:, :places]


def _block_loss(
    pixels: Tensor, targets: Tensor, prototypes: Tensor, bias: Tensor, temperature: float
) -> Tensor:
    similarities = pixels @ prototypes.transpose(1, 2) / temperature + bias[:, None]
    return F.cross_entropy(similarities.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
