"""Pseudo labels: decode, multi-scale CAM, peaks, prompts, SAM, aggregation, for a table of images."""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import decode_image, encode_mask
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.encoder import encode_images
from ray_wsss.models.store import load_classifier
from ray_wsss.stages.prompting import PairCams, PairMasks, aggregate, decode_pairs, find_cams, find_prompts

SEGMENT = pa.struct(
    [
        pa.field("class_index", pa.int32()),
        pa.field("points_xy", pa.list_(pa.list_(pa.float32(), 2))),  # pixels of the image, x before y
        pa.field("sam_score", pa.float32()),  # SAM's predicted IoU of the mask
        pa.field("cam_mean", pa.float32()),  # mean CAM over the mask, in [0, 1]
        pa.field("area", pa.int64()),  # pixels of the mask
        pa.field("rle", pa.string()),  # the mask before classes compete, COCO's compressed RLE
    ]
)
LABEL_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("pseudo_label", pa.binary()),  # PNG: 0 background, class c as c + 1
        pa.field("segments", pa.list_(SEGMENT)),
        pa.field("error", pa.string()),  # why there is no label; null where there is one
    ]
)


@dataclass(frozen=True, eq=False)
class _Image:
    """A decoded image and its working copy."""

    row: int
    image_hw: tuple[int, int]
    pixels: NDArray[np.uint8]
    """(H, W, 3) at working size: at most ``max_side_px``."""


class SamLabeller:
    """Labels tables of images; hosts a classifier and SAM on one device.

    A row that fails carries its reason in ``error``; the others go on.
    """

    def __init__(self, config: LabelConfig, sam: SamConfig, classifier: Path, device: str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        model, self.spec = load_classifier(classifier)
        self.model = model.to(self.device)
        self.sam = build_sam(sam).to(self.device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of a data set (`data.schema.IMAGE_SCHEMA`) to rows of `LABEL_SCHEMA`, in order."""
        rows = table.select(["image_id", "image", "orientation", "image_labels"]).to_pylist()
        results: list[dict[str, Any]] = [{"image_id": row["image_id"]} for row in rows]
        images: list[_Image] = []
        for at, row in enumerate(rows):
            try:
                images.append(self._load(at, row))
            except ValueError as error:
                results[at]["error"] = str(error)
        if images:
            labels = self._image_labels([rows[image.row] for image in images])
            self._label(images, labels, results)
        return pa.Table.from_pylist(results, schema=LABEL_SCHEMA)

    def _load(self, at: int, row: dict[str, Any]) -> _Image:
        beyond = [c for c in row["image_labels"] if not 0 <= c < len(self.spec.class_names)]
        if beyond:
            raise ValueError(
                f"image label {beyond[0]}; the classifier has {len(self.spec.class_names)} classes"
            )
        pixels = decode_image(row["image"], row["orientation"])
        return _Image(at, pixels.shape[:2], shrink(pixels, self.config.max_side_px))

    def _image_labels(self, rows: list[dict[str, Any]]) -> Tensor:
        labels = torch.zeros(len(rows), len(self.spec.class_names), device=self.device)
        for at, row in enumerate(rows):
            labels[at, row["image_labels"]] = 1
        return labels

    @torch.no_grad()
    def _label(self, images: list[_Image], image_labels: Tensor, results: list[dict[str, Any]]) -> None:
        groups = group_by_size([image.pixels for image in images])
        cams, local = [], []
        for members in groups:
            batch = to_tensor([images[m].pixels for m in members], self.device)
            found = find_cams(
                self.model, batch, image_labels[members], scales=self.config.scales, flip=self.config.flip
            )
            local.append(found)
            over_all = torch.tensor(members, device=self.device)[found.image_index]
            cams.append(replace(found, image_index=over_all))
        points_yx = [find_prompts(group, self.config, guess=True) for group in cams]
        embeddings = encode_images(self.sam, [image.pixels for image in images])
        masks = decode_pairs(self.sam, embeddings, cams, points_yx, self.config.mask_output)
        for members, group_cams, group_masks in zip(groups, local, masks):
            labels, binary = aggregate(self.sam, group_cams, group_masks, len(members), self.config)
            for k, member in enumerate(members):
                pairs = (group_cams.image_index == k).nonzero()[:, 0].tolist()
                image = images[member]
                results[image.row] |= _describe(image, labels[k], binary, group_cams, group_masks, pairs)


def shrink(pixels: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    """An image (H, W, 3) uint8 whose long side is at most ``max_side_px`` (antialiased)."""
    height, width = pixels.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return pixels
    size_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(source, size_hw, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def group_by_size(images: list[NDArray[np.uint8]]) -> list[list[int]]:
    """Indices of the images of one size, per size."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for at, image in enumerate(images):
        groups[image.shape[:2]].append(at)
    return list(groups.values())


def to_tensor(images: list[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Images of one size to (B, 3, H, W) float RGB in [0, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float().div_(255)


def _to_size(mask: Tensor, image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """A label map at working size back at the image's size (nearest)."""
    if tuple(mask.shape) != image_hw:
        mask = F.interpolate(mask[None, None].float(), image_hw, mode="nearest-exact")[0, 0]
    return mask.to(torch.uint8).cpu().numpy()


def _describe(
    image: _Image, label: Tensor, binary: Tensor, cams: PairCams, masks: PairMasks, pairs: list[int]
) -> dict[str, Any]:
    """One image's columns of `LABEL_SCHEMA`."""
    height, width = image.image_hw
    scale = torch.tensor([width / label.shape[1], height / label.shape[0]])
    segments = []
    for pair in pairs:
        mask = _to_size(binary[pair], image.image_hw)
        inside = cams.cam[pair][binary[pair]]
        segments.append(
            {
                "class_index": int(cams.class_index[pair]),
                "points_xy": ((masks.points_yx[pair].cpu().flip(-1) + 0.5) * scale).tolist(),
                "sam_score": float(masks.predicted_iou[pair]),
                "cam_mean": float(inside.mean()) if len(inside) else 0.0,
                "area": int(mask.sum()),
                "rle": encode_rle(mask)["counts"],
            }
        )
    return {
        "height": height,
        "width": width,
        "pseudo_label": encode_mask(_to_size(label, image.image_hw)),
        "segments": segments,
    }
