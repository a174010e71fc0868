"""CAM-based Prompting Module (CPM): SAM's masks of a training batch, as pseudo labels of its crops.

The host never waits for a GPU in this module: tensor shapes follow from the batch's plan, or are upper
bounds. Prompt sets are therefore padded to `MAX_PEAKS` points; labelling, instead, batches prompt sets of
equal length (`stages.point_prompts`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.config import CpmConfig, PromptingConfig
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.interface import Embeddings, PromptableModel
from ray_wsss.ops.cam import make_cam
from ray_wsss.ops.cpm_loss import cpm_loss
from ray_wsss.ops.device import mixed_precision, upload
from ray_wsss.ops.geometry import Geometry
from ray_wsss.ops.prompt_batches import pad_points, points_to_sam_frame
from ray_wsss.stages.cams import PairCams, find_cams, find_cams_of_cells
from ray_wsss.stages.embed import restore_embeddings
from ray_wsss.stages.point_prompts import NO_MASK, compete, find_peak_mask, masks_for_labels
from ray_wsss.training.host_plan import HostPlan, make_plan
from ray_wsss.training.loop import Batch, share_of

MAX_PEAKS = 64
"""Most peaks of a CAM that prompt SAM; the highest ones are taken. On a GPU each costs a pass over the CAMs
and a token in every prompt set, even if the CAM has fewer peaks."""
_IGNORE = -1
"""Place of pixels that CPM does not learn from, in the list of an image's classes."""


@dataclass(frozen=True)
class View:
    """The picture that SAM sees for some consecutive (image, class) pairs: a whole image, or the crops."""

    pairs: slice
    """Position of the pairs in `PairCams`."""
    geometry: Geometry
    """From the picture to the crop that the CAMs were made of."""
    frame_hw: tuple[int, int]
    """Height and width of the picture inside SAM's square input, in pixels."""


class Cpm:
    """Makes pseudo labels by prompting SAM with the peaks of a batch's CAMs.

    With ``view=crop`` SAM encodes every crop, as published. With ``view=image`` the embeddings of the whole
    images come from a cache: the geometry of each crop maps peaks to the image, and masks back to the crop.

    Args:
        source: SAM with its image encoder; with ``view=image`` SAM alone will do.
        decode_batch_size: prompt sets per pass of SAM's decoder.
        bf16: run the classifier in mixed precision. SAM's encoder has its own precision. SAM's decoder runs
            in float32, because a point's position in SAM's input needs more digits than bfloat16 has.
    """

    def __init__(
        self,
        source: SamEncoder | PromptableModel,
        config: CpmConfig,
        *,
        decode_batch_size: int = 32,
        bf16: bool = False,
    ) -> None:
        self.encoder = source if isinstance(source, SamEncoder) else None
        self.sam = source.sam if isinstance(source, SamEncoder) else source
        self.config = config
        self.decode_batch_size, self.bf16 = decode_batch_size, bf16

    @torch.no_grad()
    def __call__(
        self, model: Classifier, batch: dict[str, Any], cells: Tensor | None = None
    ) -> Integer[Tensor, "B P P"]:
        """Pseudo labels of a batch of `training.crops.TrainingCrops`.

        A batch without a ``plan`` (`training.host_plan`) gets one here; for that, the host waits for the GPU.

        Args:
            cells: the backbone's feature maps of the batch, which ``cpm.reuse_pass`` makes the CAMs of.
        """
        plan = batch["plan"] if "plan" in batch else make_plan(batch)
        stored = batch.get("cells", cells if self.config.reuses_pass else None)
        cams = self._find_cams(model, batch, stored, plan.image_labels)
        points_yx, valid = find_points(cams, self.config)
        if self.config.view == "image":
            values, scale = batch["embedding"], batch.get("embedding_scale")
            embeddings = restore_embeddings(values, scale, self.sam.map_shapes)
            views = self._images_of(plan, cams)
        else:
            assert self.encoder is not None, "view=crop needs SAM's image encoder"
            # Encode in parts, to bound the memory.
            parts = batch["image"].split(self.encoder.batch_size)
            embeddings = Embeddings.cat([self.encoder.encode(self._prepare(part)) for part in parts])
            views = [self._crops_of(cams)]
        points_xy = torch.zeros_like(points_yx, dtype=torch.float)
        for view in views:
            at = view.pairs
            points_xy[at], valid[at] = crop_to_frame(points_yx[at], valid[at], view.geometry, view.frame_hw)
        logits, iou = decode_padded(
            self.sam,
            embeddings,
            cams.image_index,
            points_xy,
            valid,
            self.config,
            self.decode_batch_size,
        )
        on_crops = torch.empty_like(cams.cam)
        for view in views:
            on_crops[view.pairs] = masks_to_crop(self.sam, logits[view.pairs], view.geometry, view.frame_hw)
        return compete(on_crops, iou, cams, len(batch["inside"]), self.config)[0]

    def _find_cams(
        self, model: Classifier, batch: dict[str, Any], cells: Tensor | None, image_labels: Tensor
    ) -> PairCams:
        """CAMs of the crops, or of the feature maps that there are of them, at the size of the crops."""
        config, inside, images = self.config, batch["inside"], batch.get("image")
        with mixed_precision(inside.device, self.bf16):
            if cells is not None:
                size_hw = (inside.shape[-2], inside.shape[-1])
                return find_cams_of_cells(model, cells, image_labels, size_hw, images=images, refine=config)
            assert images is not None, "there are neither images nor their feature maps"
            return find_cams(model, images, image_labels, scales=config.scales, flip=False, refine=config)

    def _prepare(self, images: Float[Tensor, "B 3 P P"]) -> Tensor:
        """Square crops as SAM's input: resized on the device (antialiased), with SAM's normalisation."""
        size = self.sam.frame.side_px
        resized = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return self.sam.preprocess(resized * 255)

    def _crops_of(self, cams: PairCams) -> View:
        """View of the crops themselves, for all pairs at once."""
        side, size = cams.cam.shape[-1], self.sam.frame.side_px
        whole = Geometry(scaled_hw=(side, side), top=0, left=0, crop_px=side, flip=False)
        return View(slice(None), whole, (size, size))

    def _images_of(self, plan: HostPlan, cams: PairCams) -> list[View]:
        """Views of the whole images, one for each image that has pairs."""
        views, start = [], 0
        counts = cams.image_index.bincount(minlength=len(plan.geometries)).tolist()
        for geometry, image_hw, count in zip(plan.geometries, plan.image_hw, counts, strict=True):
            pairs = slice(start, start + count)
            start += count
            if count:
                views.append(View(pairs, geometry, self.sam.frame.inner_hw(image_hw)))
        return views


def supervise_cam(
    class_maps: Float[Tensor, "B M h w"],
    classes: Int[Tensor, "B M"],
    pseudo_label: Tensor,
    batch: Batch,
    mean_count: Tensor,
    temperature: float,
) -> Tensor:
    """CPM's loss: cross-entropy of the single-scale CAMs with SAM's pseudo labels of the crops.

    Args:
        class_maps: with gradient, of the classes that `ops.cam.list_classes` lists.
        classes: that list, on the device.
        pseudo_label: (B, P, P) uint8 or int32 (`label_format`), from `Cpm`.
        mean_count: pixels that the loss averages over, as a mean over all passes and workers.
        temperature: divisor of the CAM, above 0.
    """
    counted, image_labels = cpm_pixels(batch), batch["image_labels"]
    target = _place_in_list(pseudo_label, classes, image_labels.shape[1]).masked_fill(~counted, _IGNORE)
    present = image_labels.gather(1, classes)
    cam = make_cam(class_maps, present, (target.shape[-2], target.shape[-1]))
    others = image_labels.shape[1] - classes.shape[1]
    loss = cpm_loss(cam, target, temperature, other_classes=others, ignore=_IGNORE)
    return loss * share_of(counted, mean_count)


def _place_in_list(pseudo_label: Tensor, classes: Int[Tensor, "B M"], num_classes: int) -> Tensor:
    """Pseudo labels (B, P, P) with the k-th listed class of an image as k + 1, int64."""
    places = torch.arange(1, 1 + classes.shape[1], device=classes.device).expand_as(classes)
    place_of = classes.new_zeros(len(classes), 1 + num_classes).scatter_(1, classes + 1, places)
    return place_of.gather(1, pseudo_label.flatten(1).long()).view(pseudo_label.shape)


def cpm_pixels(batch: Batch) -> Tensor:
    """Pixels (B, P, P) bool that CPM learns from: those inside the images that have a class.

    Without a class there is no CAM to supervise: such pixels would only weaken the loss of the others.
    """
    return batch["inside"] & batch["image_labels"].any(1)[:, None, None]


def find_points(cams: PairCams, config: CpmConfig) -> tuple[Int[Tensor, "N K 2"], Bool[Tensor, "N K"]]:
    """Point prompts of each pair, (y, x) in pixels of the CAM, and which of the K points are real.

    On a GPU, K is the largest possible number of points, so that the host does not wait to count them. On a
    CPU, K is the largest number that a pair has.
    """
    peaks = find_peak_mask(cams, config, guess=False, max_peaks=MAX_PEAKS)
    if peaks.is_cuda:
        return pad_points(peaks, MAX_PEAKS + (config.keep_global_max == "always"))
    counts = peaks.flatten(1).sum(1).tolist()
    return pad_points(peaks, max([1, *counts]))


def decode_padded(
    sam: PromptableModel,
    embeddings: Embeddings,
    image_index: Tensor,
    points_xy: Float[Tensor, "N K 2"],
    valid: Bool[Tensor, "N K"],
    config: PromptingConfig,
    batch_size: int,
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """SAM's mask of each prompt set, as low-resolution logits, and its predicted IoU.

    Args:
        image_index: (N,) index of each set's image, on the CPU.
        points_xy: points (x, y) in pixels of SAM's input.
        valid: which points are real. A set without real points gets logits of NO_MASK and IoU 0.
        config: which of SAM's mask outputs to take, and the logit above which a mask begins.
        batch_size: prompt sets per decoder call.
    """
    side = sam.mask_side_px
    logits = points_xy.new_empty(len(points_xy), side, side)
    predicted_iou = points_xy.new_empty(len(points_xy))
    image_of = upload(image_index, embeddings.device)
    ones = torch.ones_like(valid, dtype=torch.float)
    for start in range(0, len(points_xy), batch_size):
        at = slice(start, start + batch_size)
        masks, iou = sam.decode(embeddings[image_of[at]], points_xy[at], ones[at], valid=valid[at])
        logits[at], predicted_iou[at] = masks_for_labels(sam, masks, iou, config)
    without = ~valid.any(1)
    return logits.masked_fill_(without[:, None, None], NO_MASK), predicted_iou.masked_fill_(without, 0)


def crop_to_frame(
    points_yx: Int[Tensor, "N K 2"],
    valid: Bool[Tensor, "N K"],
    geometry: Geometry,
    frame_hw: tuple[int, int],
) -> tuple[Float[Tensor, "N K 2"], Bool[Tensor, "N K"]]:
    """Map points (y, x) of a crop to (x, y) in SAM's input of its image; points in padding become invalid."""
    scaled = geometry.to_scaled(points_yx)
    height, width = geometry.scaled_hw
    y, x = scaled.unbind(-1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return points_to_sam_frame(scaled, geometry.scaled_hw, frame_hw), valid & inside


def masks_to_crop(
    sam: PromptableModel, logits: Float[Tensor, "N a b"], geometry: Geometry, frame_hw: tuple[int, int]
) -> Float[Tensor, "N P P"]:
    """Map low-resolution mask logits of the whole image to its crop; padding belongs to no mask."""
    scaled = sam.upscale(logits[:, None], frame_hw, geometry.scaled_hw)[:, 0]
    return geometry.place(scaled, fill=NO_MASK)
