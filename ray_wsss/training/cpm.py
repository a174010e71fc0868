"""CAM-based Prompting Module (CPM): SAM's masks of a training batch, as pseudo labels of its crops.

On a GPU the host never waits in here: what decides a shape is in the batch's plan, or is a bound. So prompt
sets are filled up to `MAX_PEAKS` points, where labelling batches those of equal length (`stages.prompting`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.config import CpmConfig
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.sam.decoder import decode_prompts, upscale_logits
from ray_wsss.models.sam.encoder import SamEncoder, sam_input_hw
from ray_wsss.ops.device import mixed_precision, upload
from ray_wsss.ops.geometry import Geometry
from ray_wsss.ops.prompts import pad_points, points_to_sam_frame
from ray_wsss.stages.cams import PairCams, find_cams
from ray_wsss.stages.embed import restore_embedding
from ray_wsss.stages.prompting import NO_MASK, choose_masks, compete, find_peak_mask
from ray_wsss.training.host_plan import HostPlan, make_plan

MAX_PEAKS = 64
"""Of a CAM with more peaks only the highest prompt SAM: on a GPU each costs a pass over the CAMs, and a token
in every prompt set, whether it is there or not."""


@dataclass(frozen=True)
class View:
    """What SAM sees of some neighbouring pairs, and how their crop lies in it."""

    pairs: slice
    geometry: Geometry
    frame_hw: tuple[int, int]
    """Size of the view inside SAM's square input."""


class Cpm:
    """Prompts SAM with the peaks of a batch's CAMs.

    With ``view=crop`` SAM encodes every crop, as published. With ``view=image`` it has seen the whole image
    once, for the cache: peaks are taken to the image, and masks back, by the crop's own geometry.

    Args:
        encoder: SAM, behind its image encoder.
        decode_batch_size: prompt sets per pass of SAM's decoder.
        bf16: the classifier computes in mixed precision. SAM's encoder has a precision of its own, and its
            decoder float32: a point's place in SAM's input has more digits than bfloat16.
    """

    def __init__(
        self, encoder: SamEncoder, config: CpmConfig, *, decode_batch_size: int = 32, bf16: bool = False
    ) -> None:
        self.encoder, self.sam, self.config = encoder, encoder.sam, config
        self.decode_batch_size, self.bf16 = decode_batch_size, bf16

    @torch.no_grad()
    def __call__(self, model: Classifier, batch: dict[str, Any]) -> UInt8[Tensor, "B P P"]:
        """Pseudo labels of a batch of `training.crops.TrainingCrops`.

        Its ``plan`` (`training.host_plan`) is made here where it has none: for that the host waits for a GPU.
        """
        plan = batch["plan"] if "plan" in batch else make_plan(batch)
        images = batch["image"]
        with mixed_precision(images.device, self.bf16):
            cams = find_cams(model, images, plan.image_labels, scales=self.config.scales, flip=False)
        points_yx, valid = find_points(cams, self.config)
        if self.config.view == "image":
            embeddings = restore_embedding(batch["embedding"], batch.get("embedding_scale"))
            views = self._images_of(plan, cams)
        else:
            # A few at a time: more would take more memory.
            parts = images.split(self.encoder.batch_size)
            embeddings = torch.cat([self.encoder.encode(self._prepare(part)) for part in parts])
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
            self.config.mask_output,
            self.decode_batch_size,
        )
        on_crops = torch.empty_like(cams.cam)
        for view in views:
            on_crops[view.pairs] = masks_to_crop(self.sam, logits[view.pairs], view.geometry, view.frame_hw)
        return compete(on_crops, iou, cams, len(images), self.config)[0]

    def _prepare(self, images: Float[Tensor, "B 3 P P"]) -> Tensor:
        """Square crops to SAM's input: resized on the device (antialiased), normalised as SAM's."""
        size = self.sam.image_encoder.img_size
        resized = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return self.sam.preprocess(resized * 255)

    def _crops_of(self, cams: PairCams) -> View:
        """The crops themselves, of all pairs at once."""
        side, size = cams.cam.shape[-1], self.sam.image_encoder.img_size
        whole = Geometry(scaled_hw=(side, side), top=0, left=0, crop_px=side, flip=False)
        return View(slice(None), whole, (size, size))

    def _images_of(self, plan: HostPlan, cams: PairCams) -> list[View]:
        """The whole images, for the pairs of each."""
        views, start = [], 0
        counts = cams.image_index.bincount(minlength=len(plan.geometries)).tolist()
        for geometry, image_hw, count in zip(plan.geometries, plan.image_hw, counts, strict=True):
            pairs = slice(start, start + count)
            start += count
            if count:
                views.append(View(pairs, geometry, sam_input_hw(self.sam, image_hw)))
        return views


def find_points(cams: PairCams, config: CpmConfig) -> tuple[Int[Tensor, "N K 2"], Bool[Tensor, "N K"]]:
    """Point prompts of each pair, pixels of the CAM, y before x, and which of the K there are.

    On a GPU K is the most that there can be; on a CPU, which nobody waits for, the most that there are.
    """
    peaks = find_peak_mask(cams, config, guess=False, max_peaks=MAX_PEAKS)
    if peaks.is_cuda:
        return pad_points(peaks, MAX_PEAKS + (config.keep_global_max == "always"))
    counts = peaks.flatten(1).sum(1).tolist()
    return pad_points(peaks, max([1, *counts]))


def decode_padded(
    sam: Sam,
    embeddings: Float[Tensor, "B D h w"],
    image_index: Tensor,
    points_xy: Float[Tensor, "N K 2"],
    valid: Bool[Tensor, "N K"],
    mask_output: str,
    batch_size: int,
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """SAM's mask of each prompt set, as low-resolution logits, and its predicted IoU.

    Args:
        image_index: (N,) the set's image, on the CPU.
        points_xy: pixels of SAM's input, x before y.
        valid: which points there are. A set without any gets logits of NO_MASK and IoU 0.
        mask_output: which of the multimask outputs (`config.PromptingConfig`).
        batch_size: sets per decoder call.
    """
    low = 4 * embeddings.shape[-1]
    logits = embeddings.new_empty(len(points_xy), low, low)
    predicted_iou = embeddings.new_empty(len(points_xy))
    image_of = upload(image_index, embeddings.device)
    ones = torch.ones_like(valid, dtype=torch.float)
    for start in range(0, len(points_xy), batch_size):
        at = slice(start, start + batch_size)
        masks, iou = decode_prompts(sam, embeddings[image_of[at]], points_xy[at], ones[at], valid=valid[at])
        logits[at], predicted_iou[at] = choose_masks(masks, iou, mask_output)
    without = ~valid.any(1)
    return logits.masked_fill_(without[:, None, None], NO_MASK), predicted_iou.masked_fill_(without, 0)


def crop_to_frame(
    points_yx: Int[Tensor, "N K 2"],
    valid: Bool[Tensor, "N K"],
    geometry: Geometry,
    frame_hw: tuple[int, int],
) -> tuple[Float[Tensor, "N K 2"], Bool[Tensor, "N K"]]:
    """Pixels of a crop (y, x) in SAM's input of what it is a crop of (x, y); none in padding is valid."""
    scaled = geometry.to_scaled(points_yx)
    height, width = geometry.scaled_hw
    y, x = scaled.unbind(-1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return points_to_sam_frame(scaled, geometry.scaled_hw, frame_hw), valid & inside


def masks_to_crop(
    sam: Sam, logits: Float[Tensor, "N a b"], geometry: Geometry, frame_hw: tuple[int, int]
) -> Float[Tensor, "N P P"]:
    """Low-resolution logits of masks of the whole image, on the crop; padding belongs to no mask."""
    scaled = upscale_logits(sam, logits[:, None], frame_hw, geometry.scaled_hw)[:, 0]
    return geometry.place(scaled, fill=NO_MASK)
