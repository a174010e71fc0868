"""CAM -> peaks -> point prompts -> SAM masks -> pseudo label: shared by CPM and labelling.

Works on (image, class) pairs, never on a dense tensor over all classes, and decodes the prompt sets of
all images and classes together, bucketed by their number of points.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from segment_anything.modeling import Sam
from torch import Tensor

from ray_wsss.config import PromptingConfig
from ray_wsss.models.sam.decoder import decode_prompts, upscale_logits
from ray_wsss.models.sam.encoder import sam_input_hw
from ray_wsss.ops.device import upload
from ray_wsss.ops.peaks import find_peaks, keep_global_maximum
from ray_wsss.ops.prompts import bucket_by_count, points_to_sam_frame
from ray_wsss.ops.pseudo_label import assign_labels, confidence_map, mask_scores
from ray_wsss.ops.resize import resize_maps
from ray_wsss.stages.cams import PairCams

WHOLE = 3
"""Decoder output of the whole object: multimask output 2, after the single-mask output."""

NO_MASK = -1e4
"""Logit where there is certainly no mask: finite, for what is multiplied with it."""


@dataclass(frozen=True, eq=False)
class PairMasks:
    """SAM's mask of each pair, as low-resolution logits, in the order of `PairCams`."""

    logits: Float[Tensor, "N a b"]
    predicted_iou: Float[Tensor, " N"]
    points_yx: list[Tensor]
    """Per pair (P, 2), pixels of the CAM."""


def find_peak_mask(
    cams: PairCams, config: PromptingConfig, *, guess: bool, max_peaks: int | None = None
) -> Bool[Tensor, "N H W"]:
    """Pixels that prompt SAM for each pair, False everywhere where a pair has no prompt.

    Args:
        guess: prompt a class that activates nowhere at the maximum of its class map; else it has no prompt.
            For labels a guess is better than nothing. As supervision it is worse: the CAM that it should
            teach is zero and passes no gradient, while the classes around it are pushed away.
        max_peaks: only the highest peaks; a global maximum that ``keep_global_max="always"`` adds comes on
            top. With it, and without ``guess``, the host does not wait for a GPU (`find_peaks`).
    """
    maps = cams.cam[:, None]
    peaks = find_peaks(maps, tau=config.tau, min_distance_px=config.min_distance_px, max_peaks=max_peaks)
    prompted = maps.new_ones(len(maps), 1) if guess else (maps.amax((2, 3)) > 0).to(maps.dtype)
    ranking = _rank_by_class_map(cams)[:, None] if guess else maps
    return keep_global_maximum(peaks, ranking, prompted, config.keep_global_max)[:, 0]


def _rank_by_class_map(cams: PairCams) -> Float[Tensor, "N H W"]:
    """The CAMs; where one is zero, its class map before ReLU.

    A classifier that has not learned a class yet activates nowhere: the maximum of zeros is a corner of the
    image, that of the class map is at least its best guess.
    """
    dead = cams.cam.flatten(1).amax(1) == 0 if len(cams.cam) else cams.cam.new_zeros(0, dtype=torch.bool)
    if not dead.any():
        return cams.cam
    size_hw = (cams.cam.shape[1], cams.cam.shape[2])
    ranking = cams.cam.clone()
    ranking[dead] = sum(resize_maps(maps[dead], size_hw)[:, 0] for maps in cams.class_maps)
    return ranking


def find_prompts(cams: PairCams, config: PromptingConfig, *, guess: bool) -> list[Tensor]:
    """Point prompts of each pair, (P, 2) pixels of the CAM, y before x; empty where a pair has none.

    ``guess`` as for `find_peak_mask`.
    """
    peaks = find_peak_mask(cams, config, guess=guess)
    points = [cams.cam.new_zeros(0, 2, dtype=torch.long)] * len(peaks)
    for bucket in bucket_by_count(peaks[:, None]):
        for pair, points_yx in zip(bucket.image_index.tolist(), bucket.points_yx):
            points[pair] = points_yx
    return points


def decode_pairs(
    sam: Sam,
    embeddings: Float[Tensor, "B D h w"],
    cams: Sequence[PairCams],
    points_yx: Sequence[list[Tensor]],
    mask_output: str,
    batch_size: int,
) -> list[PairMasks]:
    """SAM's mask of every pair of several groups of images, those with equally many points together.

    Args:
        cams: groups of pairs; the images of a group have one size, ``image_index`` counts over all groups.
        points_yx: per group and pair (P, 2). A pair without points gets logits of -inf and IoU 0.
        batch_size: pairs per decoder call.
    """
    in_frame: list[Tensor] = []
    for group_cams, group in zip(cams, points_yx):
        cam_hw = (group_cams.cam.shape[-2], group_cams.cam.shape[-1])
        frame_hw = sam_input_hw(sam, cam_hw)
        if group:
            together = points_to_sam_frame(torch.cat(group)[None], cam_hw, frame_hw)[0]
            in_frame += together.split([len(points) for points in group])
    image_of = torch.cat([group.image_index for group in cams]) if cams else torch.zeros(0, dtype=torch.long)
    logits, predicted_iou = decode_sets(sam, embeddings, image_of, in_frame, mask_output, batch_size)
    ends = torch.tensor([len(group) for group in points_yx]).cumsum(0).tolist()
    return [
        PairMasks(logits[end - len(group) : end], predicted_iou[end - len(group) : end], list(group))
        for group, end in zip(points_yx, ends)
    ]


def decode_sets(
    sam: Sam,
    embeddings: Float[Tensor, "B D h w"],
    image_index: Tensor,
    points_xy: Sequence[Tensor],
    mask_output: str,
    batch_size: int,
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """SAM's mask of each prompt set, as low-resolution logits, and its predicted IoU.

    Args:
        image_index: (N,) the set's image.
        points_xy: per set (P, 2) pixels of SAM's input, x before y. A set without points gets logits of -inf
            and IoU 0.
        mask_output: which of the multimask outputs (`config.PromptingConfig`).
        batch_size: sets per decoder call.
    """
    low = 4 * embeddings.shape[-1]
    logits = embeddings.new_full((len(points_xy), low, low), -torch.inf)
    predicted_iou = embeddings.new_zeros(len(points_xy))
    for chosen in _buckets([len(points) for points in points_xy], batch_size):
        points = torch.stack([points_xy[k] for k in chosen])
        at = torch.tensor(chosen)
        image_of = upload(image_index[at], embeddings.device)
        masks, iou = decode_prompts(sam, embeddings[image_of], points, points.new_ones(points.shape[:2]))
        at = upload(at, embeddings.device)
        logits[at], predicted_iou[at] = choose_masks(masks, iou, mask_output)
    return logits, predicted_iou


def choose_masks(
    masks: Float[Tensor, "N 4 a b"], iou: Float[Tensor, "N 4"], mask_output: str
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """Of the decoder's outputs the one that ``mask_output`` names (`config.PromptingConfig`), and its IoU."""
    if mask_output == "whole":
        return masks[:, WHOLE], iou[:, WHOLE]
    rows = torch.arange(len(iou), device=iou.device)
    which = 1 + iou[:, 1:].argmax(1)
    return masks[rows, which], iou[rows, which]


def _buckets(counts: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of equal counts above 0, at most ``batch_size`` at a time."""
    for count in sorted(set(counts) - {0}):
        chosen = [k for k, c in enumerate(counts) if c == count]
        for start in range(0, len(chosen), batch_size):
            yield chosen[start : start + batch_size]


def aggregate(
    sam: Sam, cams: PairCams, masks: PairMasks, num_images: int, config: PromptingConfig
) -> tuple[UInt8[Tensor, "B H W"], Tensor]:
    """Pseudo labels of a group of images of one size, and the masks (N, H, W) bool of its pairs.

    ``cams.image_index`` counts within the group here.
    """
    return compete(upscale_masks(sam, cams, masks), masks.predicted_iou, cams, num_images, config)


def upscale_masks(sam: Sam, cams: PairCams, masks: PairMasks) -> Float[Tensor, "N H W"]:
    """The masks of a group of images of one size at that size, as logits; NaN or -inf without prompts."""
    image_hw = (cams.cam.shape[-2], cams.cam.shape[-1])
    return upscale_logits(sam, masks.logits[:, None], sam_input_hw(sam, image_hw), image_hw)[:, 0]


def compete(
    logits: Float[Tensor, "N H W"],
    predicted_iou: Float[Tensor, " N"],
    cams: PairCams,
    num_images: int,
    config: PromptingConfig,
) -> tuple[UInt8[Tensor, "B H W"], Tensor]:
    """As `aggregate`, from logits that have the CAMs' size already."""
    # Interpolating between -inf gives NaN: a pair without prompts has no mask.
    logits = logits.nan_to_num(nan=NO_MASK, neginf=NO_MASK)
    binary = logits > 0
    scores = mask_scores(binary, confidence_map(config.confidence, logits, predicted_iou), cams.cam)
    return assign_labels(scores, cams.image_index, cams.class_index, num_images), binary
