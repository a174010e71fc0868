"""CAM-based Prompting Module (CPM): SAM's masks of a training batch, as pseudo labels of its crops."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.config import CpmConfig
from ray_wsss.data.loader import unpack_geometry
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.sam.decoder import upscale_logits
from ray_wsss.models.sam.encoder import sam_input_hw
from ray_wsss.ops.geometry import Geometry
from ray_wsss.ops.prompts import points_to_sam_frame
from ray_wsss.stages.embed import restore_embedding
from ray_wsss.stages.prompting import (
    NO_MASK,
    PairCams,
    aggregate,
    compete,
    decode_pairs,
    decode_sets,
    find_cams,
    find_prompts,
)


class Cpm:
    """Prompts SAM with the peaks of a batch's CAMs.

    With ``view=crop`` SAM encodes every crop, as published. With ``view=image`` it has seen the whole image
    once, for the cache: peaks are taken to the image, and masks back, by the crop's own geometry.
    """

    def __init__(self, sam: Sam, config: CpmConfig, decode_batch_size: int) -> None:
        self.sam, self.config, self.decode_batch_size = sam, config, decode_batch_size

    @torch.no_grad()
    def __call__(self, model: Classifier, batch: dict[str, Any]) -> UInt8[Tensor, "B P P"]:
        """Pseudo labels of a batch of `data.loader.TrainingCrops`."""
        images = batch["image"]
        cams = find_cams(model, images, batch["image_labels"], scales=self.config.scales, flip=False)
        points_yx = find_prompts(cams, self.config, guess=False)
        if self.config.view == "image":
            return self._on_images(batch, cams, points_yx)
        embeddings = self.sam.image_encoder(self._prepare(images))
        output, size = self.config.mask_output, self.decode_batch_size
        (masks,) = decode_pairs(self.sam, embeddings, [cams], [points_yx], output, size)
        return aggregate(self.sam, cams, masks, len(images), self.config)[0]

    def _prepare(self, images: Float[Tensor, "B 3 P P"]) -> Tensor:
        """Square crops to SAM's input: resized on the device (antialiased), normalised as SAM's."""
        size = self.sam.image_encoder.img_size
        resized = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return self.sam.preprocess(resized * 255)

    def _on_images(self, batch: dict[str, Any], cams: PairCams, points_yx: list[Tensor]) -> Tensor:
        geometries = [unpack_geometry(packed) for packed in batch["geometry"]]
        sizes = [(height, width) for height, width in batch["image_hw"].tolist()]
        frames = [sam_input_hw(self.sam, image_hw) for image_hw in sizes]
        image_of = cams.image_index.tolist()
        points_xy = [
            crop_to_frame(points, geometries[b], frames[b]) for points, b in zip(points_yx, image_of)
        ]
        embeddings = restore_embedding(batch["embedding"], batch.get("embedding_scale"))
        output, size = self.config.mask_output, self.decode_batch_size
        logits, iou = decode_sets(self.sam, embeddings, cams.image_index, points_xy, output, size)
        on_crops = cams.cam.new_full(cams.cam.shape, NO_MASK)
        for b in sorted(set(image_of)):
            pairs = [n for n, image in enumerate(image_of) if image == b]
            on_crops[pairs] = masks_to_crop(self.sam, logits[pairs], geometries[b], frames[b])
        return compete(on_crops, iou, cams, len(batch["image"]), self.config)[0]


def crop_to_frame(points_yx: Tensor, geometry: Geometry, frame_hw: tuple[int, int]) -> Float[Tensor, "N 2"]:
    """Pixels of a crop (y, x) in SAM's input of the whole image (x, y); those of the padding are dropped."""
    scaled = geometry.to_scaled(points_yx)
    height, width = geometry.scaled_hw
    y, x = scaled.unbind(1)
    scaled = scaled[(y >= 0) & (y < height) & (x >= 0) & (x < width)]
    return points_to_sam_frame(scaled[None], geometry.scaled_hw, frame_hw)[0]


def masks_to_crop(
    sam: Sam, logits: Float[Tensor, "N a b"], geometry: Geometry, frame_hw: tuple[int, int]
) -> Float[Tensor, "N P P"]:
    """Low-resolution logits of masks of the whole image, on the crop; padding belongs to no mask."""
    scaled = upscale_logits(sam, logits[:, None], frame_hw, geometry.scaled_hw)[:, 0]
    return geometry.place(scaled, fill=NO_MASK)
