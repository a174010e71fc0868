"""Segment everything: prompt SAM with a grid of points per image, and keep the good, distinct masks.

Finds the same masks as segment_anything's ``SamAutomaticMaskGenerator`` without crops and without
small-region clean-up, but decodes the prompts of many images together. Masks are kept as low-resolution
logits, and only a slice of them is at image size at any time. One image is finished before the next one's
masks are kept, and its candidates are in memory twice at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from torch import Tensor
from torchvision.ops import nms

from ray_wsss.config import SegmentsConfig
from ray_wsss.models.promptable.interface import Embeddings, PromptableModel

CPU_SLICE_PX = 2**22
"""Most logits at image size in memory at a time on a CPU, which takes twice as long with 2**24.

A GPU gets as many as ``SegmentsConfig.max_pixels_per_pass`` allows, since it launches some 40 kernels for
each slice.
"""


@dataclass(frozen=True, eq=False)
class FoundMasks:
    """K masks of one image, highest predicted IoU first."""

    logits: Float[Tensor, "K a b"]
    """SAM's low-resolution logits."""
    predicted_iou: Float[Tensor, " K"]
    """SAM's own estimate of each mask's IoU."""
    stability_score: Float[Tensor, " K"]
    """IoU of each mask at a raised and at a lowered threshold; NaN if even the latter is empty."""
    areas: Int[Tensor, " K"]
    """Pixels of each mask at image size."""
    boxes_xyxy: Int[Tensor, "K 4"]
    """First column, first row, last column and last row of each mask, in pixels of the image; 0 if empty."""
    points_xy: Float[Tensor, "K 2"]
    """Prompt point of each mask, in pixels of the image, float64."""

    def select(self, index: Int[Tensor, " k"]) -> "FoundMasks":
        """Masks at the given indices, in that order."""
        return FoundMasks(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def find_masks(
    sam: PromptableModel,
    embeddings: Embeddings,
    images_hw: Sequence[tuple[int, int]],
    config: SegmentsConfig,
    *,
    decode_batch_size: int,
) -> Iterator[FoundMasks]:
    """Find the masks of everything in B images, in the order of segment_anything's generator.

    Yields one image's masks after another; let go of them before asking for the next ones, to save memory.

    Args:
        embeddings: SAM's embeddings of the whole images.
        images_hw: height and width, in pixels, at which each image's masks are judged.
        config: grid and thresholds (`SegmentsConfig.suiting` the model); a threshold of 0 is off. ``overlap``
            and ``max_side_px`` are not read.
        decode_batch_size: points per pass of the mask decoder; a pass may span images.

    Raises:
        ValueError: the numbers of sizes and embeddings differ.
    """
    if len(images_hw) != len(embeddings):
        raise ValueError(
            f"images_hw has {len(images_hw)} sizes; expected {len(embeddings)}, one per embedding"
        )
    return _find_distinct(sam, embeddings, images_hw, config, decode_batch_size)


@torch.no_grad()
def masks_at_image_size(
    sam: PromptableModel, found: FoundMasks, image_hw: tuple[int, int], max_pixels: int
) -> Iterator[Bool[Tensor, "k H W"]]:
    """Yield the binary masks in order, in slices of at most ``max_pixels`` pixels (but at least one mask)."""
    for logits in _upscale_in_slices(sam, found.logits, image_hw, max_pixels):
        yield logits > sam.mask_threshold


@torch.no_grad()
def _find_distinct(
    sam: PromptableModel,
    embeddings: Embeddings,
    images_hw: Sequence[tuple[int, int]],
    config: SegmentsConfig,
    batch_size: int,
) -> Iterator[FoundMasks]:
    good = _find_good_masks(sam, embeddings, images_hw, config, batch_size)
    # Duplicates are dropped after an image's last point, so the candidates of only one image pile up.
    for _, parts in groupby(good, key=itemgetter(0)):
        yield _drop_duplicates([masks for _, masks in parts], config.box_nms_thresh)


def _drop_duplicates(parts: Sequence[FoundMasks], box_nms_thresh: float) -> FoundMasks:
    """The distinct masks of one image, highest predicted IoU first."""
    small = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in fields(FoundMasks)
        if f.name != "logits"
    }
    kept = nms(small["boxes_xyxy"].float(), small["predicted_iou"], box_nms_thresh)
    # Joining all logits first would hold them three times.
    logits = parts[0].logits.new_empty(len(kept), *parts[0].logits.shape[1:])
    place = torch.full_like(small["areas"], -1)
    place[kept] = torch.arange(len(kept), device=kept.device)
    for part, places in zip(parts, place.split([len(part.areas) for part in parts])):
        rows = (places >= 0).nonzero()[:, 0]
        logits[places[rows]] = part.logits[rows]
    return FoundMasks(logits, **{name: values[kept] for name, values in small.items()})


def _find_good_masks(
    sam: PromptableModel,
    embeddings: Embeddings,
    images_hw: Sequence[tuple[int, int]],
    config: SegmentsConfig,
    batch_size: int,
) -> Iterator[tuple[int, FoundMasks]]:
    """Yield the index of an image and its masks above the thresholds, once per decoder pass and image in it.

    Images ascend, and each is yielded at least once.
    """
    grid_xy = build_point_grid(config.points_per_side)
    per_image = len(grid_xy)
    points_xy, in_frame = _place_grid(sam, grid_xy, images_hw)
    for start in range(0, len(in_frame), batch_size):
        points = in_frame[start : start + batch_size, None].to(embeddings.device)
        end = start + len(points)
        shown = range(start // per_image, (end - 1) // per_image + 1)
        image_of = torch.arange(start, end, device=embeddings.device) // per_image - shown.start
        some, labels = embeddings[shown.start : shown.stop], points.new_ones(points.shape[:2])
        logits, iou = sam.decode(some, points, labels, image_index=image_of)
        for image in shown:
            first, last = max(start, image * per_image), min(end, (image + 1) * per_image)
            rows = slice(first - start, last - start)
            xy = points_xy[first:last].to(embeddings.device)
            # The generator does not use output 0, the single-mask output.
            yield image, _keep_good(sam, logits[rows, 1:], iou[rows, 1:], xy, images_hw[image], config)


def _place_grid(
    sam: PromptableModel, grid_xy: np.ndarray, images_hw: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N 2"]]:
    """Grid points on each image in turn, in pixels of the image and in pixels of SAM's input.

    Both are float64: the generator rounds to float32 only inside SAM's prompt encoder.
    """
    on_images = [grid_xy * image_hw[::-1] for image_hw in images_hw]
    in_frame = [sam.frame.place_points(xy, image_hw) for xy, image_hw in zip(on_images, images_hw)]
    points_xy, in_frame_xy = (torch.tensor(np.array(xy)).reshape(-1, 2) for xy in (on_images, in_frame))
    return points_xy, in_frame_xy


def _keep_good(
    sam: PromptableModel,
    logits: Float[Tensor, "P 3 a b"],
    predicted_iou: Float[Tensor, "P 3"],
    points_xy: Float[Tensor, "P 2"],
    image_hw: tuple[int, int],
    config: SegmentsConfig,
) -> FoundMasks:
    """Candidates, from some points of one image, that pass both thresholds."""
    candidates, iou = logits.flatten(0, 1), predicted_iou.flatten()
    index = torch.arange(len(iou), device=iou.device)
    least_iou, least_stability = config.thresholds
    # The generator upscales all candidates first, but the test of predicted IoU does not need that.
    if least_iou > 0:
        index = (iou > least_iou).nonzero()[:, 0]
    masks = _measure(
        sam, candidates[index], iou[index], points_xy[index // logits.shape[1]], image_hw, config
    )
    if least_stability > 0:
        masks = masks.select((masks.stability_score >= least_stability).nonzero()[:, 0])
    return masks


def _measure(
    sam: PromptableModel,
    logits: Float[Tensor, "K a b"],
    predicted_iou: Float[Tensor, " K"],
    points_xy: Float[Tensor, "K 2"],
    image_hw: tuple[int, int],
    config: SegmentsConfig,
) -> FoundMasks:
    """Measure candidates at image size: stability score, area and box."""
    # Written in place: small results that outlive the large slices would fragment the C heap, and 1,000 masks
    # of 1024 x 1024 pixels would take 1.6 GB.
    stability = torch.empty_like(predicted_iou)
    areas = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    boxes = torch.empty(len(logits), 4, dtype=torch.long, device=logits.device)
    end = 0
    for full in _upscale_in_slices(sam, logits, image_hw, config.max_pixels_per_pass):
        start, end = end, end + len(full)
        binary = full > sam.mask_threshold
        offset = config.stability_score_offset
        stability[start:end] = calculate_stability_score(full, sam.mask_threshold, offset)
        areas[start:end] = binary.sum((-2, -1))
        boxes[start:end] = batched_mask_to_box(binary)
    return FoundMasks(logits, predicted_iou, stability, areas, boxes, points_xy)


def _upscale_in_slices(
    sam: PromptableModel, logits: Float[Tensor, "K a b"], image_hw: tuple[int, int], max_pixels: int
) -> Iterator[Float[Tensor, "k H W"]]:
    """Yield logits at image size, at most ``max_pixels`` at a time; without masks, one empty slice."""
    largest_px = max(image_hw[0] * image_hw[1], sam.frame.side_px**2)
    slice_px = max_pixels if logits.is_cuda else min(max_pixels, CPU_SLICE_PX)
    for part in logits.split(max(1, slice_px // largest_px)):
        yield sam.upscale(part[:, None], sam.frame.inner_hw(image_hw), image_hw)[:, 0]
