"""Merge SAM's masks, one or more per class, into one pseudo label per image."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from ray_wsss.label_format import MAX_BYTE_CLASSES, ignore_label, label_format

Confidence = Literal["logit", "stability", "iou"]


def confidence_map(
    kind: Confidence, mask_logits: Float[Tensor, "N H W"], predicted_iou: Float[Tensor, " N"]
) -> Float[Tensor, "N H W"]:
    """Spread SAM's confidence in its masks over the pixels.

    Args:
        kind: "logit": each pixel's mask logit (released code); "stability": the mask's stability score
            (paper); "iou": SAM's predicted IoU of the mask.
        mask_logits: SAM's mask logits, before the threshold at 0.
        predicted_iou: SAM's own estimate of each mask's IoU.

    Returns:
        Confidence: unbounded for "logit", else one value per mask, in about [0, 1]. For "iou" and "stability"
        it is an expanded view: do not write to it.
    """
    if kind == "logit":
        return mask_logits
    per_mask = predicted_iou if kind == "iou" else stability_score(mask_logits)
    return per_mask[:, None, None].expand_as(mask_logits)


def stability_score(mask_logits: Float[Tensor, "N H W"], offset: float = 1.0) -> Float[Tensor, " N"]:
    """IoU of the two masks that the thresholds +offset and -offset give.

    Equals `segment_anything.utils.amg.calculate_stability_score(mask_logits, 0.0, offset)`, except that a
    mask without any logit above -offset scores 0 here, not NaN.
    """
    # The stricter mask lies inside the looser one, so they are the intersection and the union.
    intersection = (mask_logits > offset).sum(dim=(-2, -1))
    union = (mask_logits > -offset).sum(dim=(-2, -1))
    return (intersection / union.clamp(min=1)).to(mask_logits.dtype)


def mask_scores(
    masks: Bool[Tensor, "N H W"], confidence: Float[Tensor, "N H W"], cam: Float[Tensor, "N H W"]
) -> Float[Tensor, "N H W"]:
    """Score the pixels of each mask: confidence times the mean CAM over the mask.

    Args:
        masks: SAM's masks, at the CAM's size.
        confidence: from `confidence_map`.
        cam: CAM, in [0, 1], of the image and class for which each mask was prompted.

    Returns:
        Scores, -inf outside the mask; an empty mask has -inf everywhere.
    """
    # An empty mask gives 0 / 0 = NaN, but the fill below overwrites all its pixels.
    cam_mean = (cam * masks).sum(dim=(-2, -1)) / masks.sum(dim=(-2, -1))
    return (confidence * cam_mean[:, None, None]).masked_fill(~masks, -torch.inf)


def assign_labels(
    scores: Float[Tensor, "N H W"],
    image_index: Int[Tensor, " N"],
    class_index: Int[Tensor, " N"],
    num_images: int,
    num_classes: int = MAX_BYTE_CLASSES,
) -> Integer[Tensor, "B H W"]:
    """Give each pixel the class of the highest score in its image (`LabelContest`, all masks at once).

    Args:
        scores: from `mask_scores`. Of several masks of a class, the best one counts at each pixel.
        image_index: image of each mask, in 0 .. num_images - 1.
        class_index: class of each mask, from 0.
        num_images: B; an image without masks becomes background.
        num_classes: number of classes, which decides the type of the labels (`label_format`).

    Returns:
        0 = background (no mask covers the pixel), class c as c + 1. Of equal scores, the lower class wins.

    Raises:
        ValueError: an index is out of range.
    """
    contest = LabelContest(num_images, (scores.shape[1], scores.shape[2]), scores, num_classes)
    contest.add(scores, image_index, class_index)
    return contest.labels


class LabelContest:
    """Gives each pixel of B images the class of its highest score; masks may arrive a few at a time.

    Memory grows with the number of images and of masks that arrive together, not with the number of classes.

    Args:
        num_images: B; an image without masks becomes background.
        size_hw: height and width of the images, in pixels.
        like: any tensor of the scores' dtype and device.
        num_classes: number of classes, which decides the type of ``labels`` (`label_format`).
    """

    def __init__(
        self,
        num_images: int,
        size_hw: tuple[int, int],
        like: Tensor,
        num_classes: int = MAX_BYTE_CLASSES,
    ) -> None:
        self._best = like.new_full((num_images, *size_hw), -torch.inf)
        self._num_classes = num_classes
        dtype = label_format(num_classes).tensor_dtype()
        self.labels: Integer[Tensor, "B H W"] = torch.zeros_like(self._best, dtype=dtype)

    def add(
        self,
        scores: Float[Tensor, "N H W"],
        image_index: Int[Tensor, " N"],
        class_index: Int[Tensor, " N"],
        at: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        """Let masks compete with each other and with the earlier ones.

        Of equal scores, the earlier one wins; among masks that arrive together, the lower class. The host
        reads both indices; if they are on the CPU, it does not wait for the scores' device.

        Args:
            scores: from `mask_scores`.
            image_index, class_index: as for `assign_labels`.
            at: rows and columns of the images that the scores cover; without it, all.

        Raises:
            ValueError: an index is out of range.
        """
        images, classes = image_index.tolist(), class_index.tolist()
        _check_indices(images, classes, len(self._best), self._num_classes)
        # Ascending classes and a strict comparison: a tie stays with the lower class.
        for n in sorted(range(len(classes)), key=classes.__getitem__):
            best = self._best[images[n]][at]
            better = scores[n] > best
            best.copy_(torch.where(better, scores[n], best))
            self.labels[images[n]][at].masked_fill_(better, classes[n] + 1)


def _check_indices(images: Sequence[int], classes: Sequence[int], num_images: int, num_classes: int) -> None:
    if any(c < 0 or c >= num_classes for c in classes):
        raise ValueError(f"class_index spans {min(classes)}..{max(classes)}; expected 0..{num_classes - 1}")
    if any(b < 0 or b >= num_images for b in images):
        raise ValueError(f"image_index spans {min(images)}..{max(images)}; expected 0..{num_images - 1}")


def ignore_rim(labels: Integer[Tensor, "B H W"], rim_px: int) -> Integer[Tensor, "B H W"]:
    """Label maps whose pixels near a border between two labels are ignored, since masks are least sure there.

    Pixels that are ignored already make no border.

    Args:
        labels: uint8 or int32 (`label_format`).
        rim_px: a pixel is ignored if the square of this many pixels on each side of it has another label.
    """
    ignore = ignore_label(labels)
    # float32 is exact here, since all labels are below 2**24.
    values = labels[:, None].float()
    ignored = labels[:, None] == ignore
    around = nn.MaxPool2d(2 * rim_px + 1, stride=1, padding=rim_px)
    highest = around(values.masked_fill(ignored, -torch.inf))
    lowest = -around((-values).masked_fill(ignored, -torch.inf))
    return labels.masked_fill((highest > lowest)[:, 0], ignore)
