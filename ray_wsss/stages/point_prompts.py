"""CAM -> peaks -> point prompts -> SAM masks -> pseudo labels: shared by CPM and labelling.

The functions work on (image, class) pairs, never on a dense tensor over all classes. Prompt sets with equally
many points are decoded together, whichever images and classes they belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from ray_wsss.config import PromptingConfig
from ray_wsss.models.promptable.interface import Embeddings, PromptableModel
from ray_wsss.ops.device import upload
from ray_wsss.ops.peaks import find_peaks, keep_global_maximum
from ray_wsss.ops.prompt_batches import batch_by_shape, bucket_by_count, points_to_sam_frame
from ray_wsss.ops.pseudo_label import assign_labels, confidence_map, mask_scores
from ray_wsss.ops.resize import resize_maps, slices_of
from ray_wsss.stages.cams import PairCams

NO_MASK = -1e4
"""Logit of pixels that certainly are outside a mask; finite, so that products with it are finite."""


@dataclass(frozen=True, eq=False)
class PairMasks:
    """SAM's mask of each (image, class) pair, in the order of `PairCams`."""

    logits: Float[Tensor, "N a b"]
    """Low-resolution logits of each mask, counted from ``mask_threshold``."""
    predicted_iou: Float[Tensor, " N"]
    """IoU of each mask as SAM predicts it."""
    points_yx: list[Tensor]
    """Per pair, point prompts (P, 2): (y, x) in pixels of the CAM."""

    def part(self, pairs: slice) -> "PairMasks":
        """Some of the pairs, as views."""
        return PairMasks(self.logits[pairs], self.predicted_iou[pairs], self.points_yx[pairs])


def find_peak_mask(
    cams: PairCams, config: PromptingConfig, *, guess: bool, max_peaks: int | None = None
) -> Bool[Tensor, "N H W"]:
    """Mask of the pixels that prompt SAM for each pair; all False for a pair without prompts.

    Args:
        guess: prompt a class whose CAM is zero everywhere at the maximum of its class map; without it, such a
            class has no prompt. For labels, a guess is better than nothing. As supervision, a guess is worse:
            a zero CAM gets no gradient and learns nothing, while the other classes are pushed away there.
        max_peaks: keep only the highest peaks, and the global maximum that ``keep_global_max="always"`` adds.
            With it, and without ``guess``, the host does not wait for a GPU (`find_peaks`).
    """
    maps = cams.cam[:, None]
    peaks = find_peaks(maps, tau=config.tau, min_distance_px=config.min_distance_px, max_peaks=max_peaks)
    prompted = maps.new_ones(len(maps), 1) if guess else (maps.amax((2, 3)) > 0).to(maps.dtype)
    ranking = _rank_by_class_map(cams)[:, None] if guess else maps
    return keep_global_maximum(peaks, ranking, prompted, config.keep_global_max)[:, 0]


def _rank_by_class_map(cams: PairCams) -> Float[Tensor, "N H W"]:
    """The CAMs, with each CAM that is zero everywhere replaced by its class map before ReLU.

    A classifier that has not learned a class yet gives a zero CAM, whose maximum is a corner of the image.
    The maximum of the class map is at least the classifier's best guess.
    """
    dead = cams.cam.flatten(1).amax(1) == 0 if len(cams.cam) else cams.cam.new_zeros(0, dtype=torch.bool)
    if not dead.any():
        return cams.cam
    size_hw = (cams.cam.shape[1], cams.cam.shape[2])
    ranking = cams.cam.clone()
    ranking[dead] = sum(resize_maps(maps[dead], size_hw)[:, 0] for maps in cams.class_maps)
    return ranking


def find_prompts(
    cams: PairCams, config: PromptingConfig, *, guess: bool, max_pixels: int | None = None
) -> list[Tensor]:
    """Point prompts (P, 2) of each pair: (y, x) in pixels of the CAM; empty for a pair without prompts.

    Args:
        guess: that of `find_peak_mask`.
        max_pixels: most pixels of CAMs that are searched at a time; None: all at once.
    """
    if max_pixels is not None and cams.cam.numel() > max_pixels:
        parts = slices_of(len(cams.cam), cams.cam[0].numel(), max_pixels)
        return [points for part in parts for points in find_prompts(cams.part(part), config, guess=guess)]
    peaks = find_peak_mask(cams, config, guess=guess)
    points = [cams.cam.new_zeros(0, 2, dtype=torch.long)] * len(peaks)
    for bucket in bucket_by_count(peaks[:, None]):
        for pair, points_yx in zip(bucket.image_index.tolist(), bucket.points_yx):
            points[pair] = points_yx
    return points


def decode_pairs(
    sam: PromptableModel,
    embeddings: Embeddings,
    cams: Sequence[PairCams],
    points_yx: Sequence[list[Tensor]],
    config: PromptingConfig,
    batch_size: int,
) -> list[PairMasks]:
    """SAM's mask of every pair of several groups of images; pairs with equally many points go together.

    Args:
        cams: groups of pairs. The images of a group have one size; ``image_index`` counts over all groups.
        points_yx: per group and pair, points (P, 2): (y, x) in pixels of the CAM. A pair without points gets
            logits of -inf and IoU 0.
        config: which of SAM's mask outputs to take, and the logit above which a mask begins.
        batch_size: pairs per decoder call.
    """
    in_frame: list[Tensor] = []
    for group_cams, group in zip(cams, points_yx):
        cam_hw = (group_cams.cam.shape[-2], group_cams.cam.shape[-1])
        frame_hw = sam.frame.inner_hw(cam_hw)
        if group:
            together = points_to_sam_frame(torch.cat(group)[None], cam_hw, frame_hw)[0]
            in_frame += together.split([len(points) for points in group])
    image_of = torch.cat([group.image_index for group in cams]) if cams else torch.zeros(0, dtype=torch.long)
    logits, predicted_iou = decode_sets(sam, embeddings, image_of, in_frame, config, batch_size)
    ends = torch.tensor([len(group) for group in points_yx]).cumsum(0).tolist()
    return [
        PairMasks(logits[end - len(group) : end], predicted_iou[end - len(group) : end], list(group))
        for group, end in zip(points_yx, ends)
    ]


def decode_sets(
    sam: PromptableModel,
    embeddings: Embeddings,
    image_index: Tensor,
    points_xy: Sequence[Tensor],
    config: PromptingConfig,
    batch_size: int,
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """SAM's mask of each prompt set, as low-resolution logits, and its predicted IoU.

    Args:
        image_index: (N,) index of each set's image.
        points_xy: per set, points (P, 2): (x, y) in pixels of SAM's input. A set without points gets logits
            of -inf and IoU 0.
        config: which of SAM's mask outputs to take, and the logit above which a mask begins.
        batch_size: prompt sets per decoder call.
    """
    logits, predicted_iou = no_masks(sam, embeddings, len(points_xy))
    with_points = [k for k, points in enumerate(points_xy) if len(points)]
    for batch in batch_by_shape([len(points_xy[k]) for k in with_points], batch_size):
        chosen = [with_points[k] for k in batch]
        points = torch.stack([points_xy[k] for k in chosen])
        at = torch.tensor(chosen)
        image_of = upload(image_index[at], embeddings.device)
        masks, iou = sam.decode(embeddings[image_of], points, points.new_ones(points.shape[:2]))
        at = upload(at, embeddings.device)
        logits[at], predicted_iou[at] = masks_for_labels(sam, masks, iou, config)
    return logits, predicted_iou


def no_masks(
    sam: PromptableModel, embeddings: Embeddings, count: int
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """Logits of -inf and predicted IoUs of 0 of prompt sets without a mask, on the device."""
    side = sam.mask_side_px
    nothing = torch.full((count, side, side), -torch.inf, device=embeddings.device)
    return nothing, nothing.new_zeros(count)


def masks_for_labels(
    sam: PromptableModel, masks: Float[Tensor, "N K a b"], iou: Float[Tensor, "N K"], config: PromptingConfig
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """The decoder output that ``config.mask_output`` names, and its predicted IoU.

    Its logits are counted from ``config.mask_threshold``, so that masks begin at 0 whatever the threshold.
    """
    chosen, predicted_iou = choose_masks(sam, masks, iou, config.mask_output)
    return chosen - config.mask_threshold, predicted_iou


def choose_masks(
    sam: PromptableModel, masks: Float[Tensor, "N K a b"], iou: Float[Tensor, "N K"], mask_output: str
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """The decoder output that ``mask_output`` names (`config.PromptingConfig`), and its predicted IoU."""
    if mask_output != "best_iou" and sam.whole is not None:
        return masks[:, sam.whole], iou[:, sam.whole]
    assert mask_output != "whole", "this model has no output for the whole object"
    rows = torch.arange(len(iou), device=iou.device)
    which = 1 + iou[:, 1:].argmax(1)
    return masks[rows, which], iou[rows, which]


def aggregate(
    sam: PromptableModel, cams: PairCams, masks: PairMasks, num_images: int, config: PromptingConfig
) -> tuple[Integer[Tensor, "B H W"], Tensor]:
    """Pseudo labels of a group of images of one size, and masks (N, H, W) bool of its pairs.

    ``cams.image_index`` must count within the group.
    """
    return compete(upscale_masks(sam, cams, masks), masks.predicted_iou, cams, num_images, config)


def upscale_masks(sam: PromptableModel, cams: PairCams, masks: PairMasks) -> Float[Tensor, "N H W"]:
    """Logits of the masks of a group of images, at the size of the images; NaN or -inf without prompts."""
    image_hw = (cams.cam.shape[-2], cams.cam.shape[-1])
    return sam.upscale(masks.logits[:, None], sam.frame.inner_hw(image_hw), image_hw)[:, 0]


def compete(
    logits: Float[Tensor, "N H W"],
    predicted_iou: Float[Tensor, " N"],
    cams: PairCams,
    num_images: int,
    config: PromptingConfig,
) -> tuple[Integer[Tensor, "B H W"], Tensor]:
    """Pseudo labels and masks like `aggregate`, from logits that already have the size of the CAMs."""
    scores, binary = score_pairs(logits, predicted_iou, cams, config)
    labels = assign_labels(scores, cams.image_index, cams.class_index, num_images, cams.num_classes)
    return labels, binary


def score_pairs(
    logits: Float[Tensor, "N H W"],
    predicted_iou: Float[Tensor, " N"],
    cams: PairCams,
    config: PromptingConfig,
) -> tuple[Float[Tensor, "N H W"], Bool[Tensor, "N H W"]]:
    """Scores of pairs' pixels, by which classes compete, and masks, from logits of the CAMs' size."""
    # A pair without prompts has no mask: its logits are -inf, or NaN after interpolation.
    logits = logits.nan_to_num(nan=NO_MASK, neginf=NO_MASK)
    binary = logits > 0
    return mask_scores(binary, confidence_map(config.confidence, logits, predicted_iou), cams.cam), binary
