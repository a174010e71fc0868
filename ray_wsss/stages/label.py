"""Pseudo labels: multi-scale CAM, peaks, prompts, SAM, aggregation, for the images of a chunk.

Every phase has a batch size of its own: the classifier sees images of one size together, SAM's encoder
images of any size, SAM's decoder prompt sets of equally many points, whichever images and classes they
belong to.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import encode_mask
from ray_wsss.data.schema import ROWS_PER_GROUP
from ray_wsss.models.sam.encoder import load_encoder
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.pseudo_label import stability_score
from ray_wsss.stages.chunks import PreparedImage, resize_map
from ray_wsss.stages.embed import embeddings_of
from ray_wsss.stages.prompting import (
    PairCams,
    PairMasks,
    compete,
    decode_pairs,
    find_cams,
    find_prompts,
    upscale_masks,
)
from ray_wsss.stages.region_prompts import decode_regions
from ray_wsss.stages.tally import Tally

SEGMENT = pa.struct(
    [
        pa.field("class_index", pa.int32()),
        pa.field("points_xy", pa.list_(pa.list_(pa.float32(), 2))),  # pixels of the image, x before y
        pa.field("sam_score", pa.float32()),  # SAM's predicted IoU of the mask
        pa.field("stability_score", pa.float32()),  # IoU of the masks at logits above 1 and above -1
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
_WRITE_THREADS = 4
"""Threads that encode the labels of a GPU actor, so that the GPU need not wait for PNG and RLE."""


@dataclass(frozen=True, eq=False)
class _Labelled:
    """One image's results, on the CPU, at working size."""

    label: NDArray[np.uint8]
    """(h, w)."""
    masks: NDArray[np.bool_]
    """(P, h, w), one per class that is present."""
    segments: list[dict[str, Any]]
    """Per mask its columns of `SEGMENT`, without what is counted at the image's size."""


def score_of(segment: Mapping[str, Any]) -> float:
    """How sure a `SEGMENT` is: SAM's predicted IoU times the mean CAM over the mask, in [0, 1]."""
    return min(1.0, max(0.0, segment["sam_score"] * segment["cam_mean"]))


class SamLabeller:
    """Labels the images of a chunk; hosts a classifier and SAM on one device.

    A row that fails carries its reason in ``error``; the others go on.

    Args:
        classifier: output of train-classifier.
        images: how many SAM will encode, about (`models.sam.encoder.load_encoder`).
    """

    rows_per_group = ROWS_PER_GROUP

    def __init__(
        self,
        config: LabelConfig,
        sam: SamConfig,
        classifier: Path,
        device: str = "cpu",
        images: int = 0,
    ) -> None:
        self.config, self.sam_config = config, sam
        self.device = torch.device(device)
        model, self.spec = load_classifier(classifier)
        self.model = model.to(self.device)
        self.encoder = load_encoder(sam, self.device, images)
        self.sam = self.encoder.sam
        # On a CPU there is nothing to overlap: labels are encoded when they are asked for.
        self.map = ThreadPoolExecutor(_WRITE_THREADS).map if self.device.type == "cuda" else map

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Images to rows of `LABEL_SCHEMA`, in order, and what it took."""
        rows: list[dict[str, Any]] = []
        for image in images:
            error = image.error if image.error is not None else self._beyond(image.image_labels)
            rows.append({"image_id": image.image_id, "error": error})
        good = [at for at, row in enumerate(rows) if row["error"] is None]
        tally = Tally(images=len(good), errors=len(rows) - len(good))
        # Images of one size side by side make full batches for the classifier.
        good.sort(key=lambda at: _pixels(images[at]).shape)
        described = []
        for start in range(0, len(good), self.config.batch_size):
            batch = [images[at] for at in good[start : start + self.config.batch_size]]
            described.append(self.map(_describe, batch, self._label(batch, tally)))
        with tally.phase("write"):
            for at, row in zip(good, chain.from_iterable(described)):
                rows[at] |= row
            return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), tally

    def _beyond(self, image_labels: Sequence[int]) -> str | None:
        beyond = [c for c in image_labels if not 0 <= c < len(self.spec.class_names)]
        return (
            f"image label {beyond[0]}; the classifier has {len(self.spec.class_names)} classes"
            if beyond
            else None
        )

    @torch.no_grad()
    def _label(self, batch: Sequence[PreparedImage], tally: Tally) -> list[_Labelled]:
        with tally.phase("cam", self.device):
            groups = group_by_size([_pixels(image) for image in batch], self.config.cam_batch_size)
            cams = [self._cams(batch, members) for members in groups]
        with tally.phase("encode", self.device):
            embeddings = embeddings_of(self.encoder, batch)
        with tally.phase("prompt", self.device):
            points_yx = [find_prompts(group, self.config, guess=True) for group in cams]
            over_all = [
                replace(group, image_index=torch.tensor(members)[group.image_index])
                for group, members in zip(cams, groups)
            ]
            masks = self._decode(embeddings, over_all, points_yx)
            results: dict[int, _Labelled] = {}
            for members, group_cams, group_masks in zip(groups, cams, masks):
                results.update(zip(members, self._aggregate(group_cams, group_masks, len(members))))
        tally.masks += sum(len(points) for points in points_yx)
        tally.prompts += sum(len(points) for group in points_yx for points in group)
        return [results[at] for at in range(len(batch))]

    def _decode(
        self, embeddings: Tensor, cams: Sequence[PairCams], points_yx: Sequence[list[Tensor]]
    ) -> list[PairMasks]:
        size = self.sam_config.decode_batch_size
        if self.config.prompts != "points":
            return decode_regions(self.sam, embeddings, cams, points_yx, self.config, size)
        return decode_pairs(self.sam, embeddings, cams, points_yx, self.config.mask_output, size)

    def _cams(self, batch: Sequence[PreparedImage], members: list[int]) -> PairCams:
        image_labels = torch.zeros(len(members), len(self.spec.class_names))
        for k, member in enumerate(members):
            image_labels[k, list(batch[member].image_labels)] = 1
        pixels = to_tensor([_pixels(batch[member]) for member in members], self.device)
        scales, flip = self.config.scales, self.config.flip
        return find_cams(self.model, pixels, image_labels, scales=scales, flip=flip)

    def _aggregate(self, cams: PairCams, masks: PairMasks, count: int) -> list[_Labelled]:
        """Labels and masks of a group of ``count`` images of one size."""
        logits = upscale_masks(self.sam, cams, masks)
        labels, binary = compete(logits, masks.predicted_iou, cams, count, self.config)
        inside = binary.sum((1, 2)).clamp(min=1)
        columns = {
            "class_index": cams.class_index.tolist(),
            "sam_score": masks.predicted_iou.tolist(),
            "stability_score": stability_score(logits).tolist(),
            "cam_mean": ((cams.cam * binary).sum((1, 2)) / inside).tolist(),
            "points_xy": [points.flip(-1).tolist() for points in masks.points_yx],
        }
        segments = [dict(zip(columns, values)) for values in zip(*columns.values())]
        image_of = cams.image_index.numpy()
        label_maps, mask_maps = labels.cpu().numpy(), binary.cpu().numpy()
        pairs = [np.flatnonzero(image_of == k) for k in range(count)]
        return [_Labelled(label_maps[k], mask_maps[p], [segments[n] for n in p]) for k, p in enumerate(pairs)]


def to_tensor(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Images of one size to (B, 3, H, W) float RGB in [0, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float().div_(255)


def _pixels(image: PreparedImage) -> NDArray[np.uint8]:
    assert image.pixels is not None
    return image.pixels


def group_by_size(images: Sequence[NDArray[np.uint8]], most: int) -> list[list[int]]:
    """Indices of images of one size, at most ``most`` together."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for at, image in enumerate(images):
        groups[image.shape].append(at)
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]


def _describe(image: PreparedImage, result: _Labelled) -> dict[str, Any]:
    """One image's columns of `LABEL_SCHEMA`."""
    height, width = image.image_hw
    scale = np.array([width / result.label.shape[1], height / result.label.shape[0]])
    segments = []
    for mask, segment in zip(result.masks, result.segments):
        at_size = resize_map(mask, image.image_hw)
        points_xy = (np.array(segment["points_xy"]).reshape(-1, 2) + 0.5) * scale
        rle = encode_rle(at_size)["counts"]
        segments.append(segment | {"points_xy": points_xy.tolist(), "area": int(at_size.sum()), "rle": rle})
    return {
        "height": height,
        "width": width,
        "pseudo_label": encode_mask(resize_map(result.label, image.image_hw)),
        "segments": segments,
    }
