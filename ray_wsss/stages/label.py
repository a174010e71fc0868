"""Pseudo labels for the images of a chunk: multi-scale CAM, peaks, prompts, SAM, aggregation.

Every phase has its own batches. The classifier takes images of one size, SAM's encoder images of any size,
and SAM's decoder prompt sets with equally many points, from any images and classes.
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
from ray_wsss.data.images import encode_mask
from ray_wsss.data.rle import encode_rles
from ray_wsss.data.schema import ROWS_PER_GROUP
from ray_wsss.models.sam.encoder import load_encoder
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.device import upload
from ray_wsss.ops.losses import IGNORE_LABEL
from ray_wsss.ops.pseudo_label import stability_score
from ray_wsss.ops.resize import group_by_size, resize_label_maps
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.cams import PairCams, cams_of
from ray_wsss.stages.embed import embeddings_of
from ray_wsss.stages.prompting import PairMasks, compete, decode_pairs, find_prompts, upscale_masks
from ray_wsss.stages.region_prompts import decode_regions

SEGMENT = pa.struct(
    [
        pa.field("class_index", pa.int32()),
        pa.field("points_xy", pa.list_(pa.list_(pa.float32(), 2))),  # pixels of the image, x before y
        pa.field("sam_score", pa.float32()),  # SAM's predicted IoU of the mask
        pa.field("stability_score", pa.float32()),  # IoU of the masks at logits above 1 and above -1
        pa.field("cam_mean", pa.float32()),  # mean CAM over the mask, in [0, 1]
        pa.field("area", pa.int64()),  # pixels of the mask
        pa.field("rle", pa.string()),  # mask before classes compete, in COCO's compressed RLE
    ]
)
LABEL_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("pseudo_label", pa.binary()),  # PNG: 0 background, class c as c + 1, 255 unknown
        pa.field("segments", pa.list_(SEGMENT)),
        pa.field("error", pa.string()),  # reason for a missing label, else null
    ]
)
_WRITE_THREADS = 4
"""Threads that encode the labels of a GPU actor, so that the GPU does not wait for PNG encoding."""


@dataclass(frozen=True, eq=False)
class _Contest:
    """Results of a group of B images of one working size, on the device."""

    labels: Tensor
    """(B, h, w) uint8, pseudo labels: 0 background, class c as c + 1."""
    masks: Tensor
    """(N, h, w) bool, SAM's mask of each (image, class) pair, before classes compete."""
    scores: Tensor
    """(N, 3), per pair: SAM's predicted IoU, stability score, mean CAM over the mask."""


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Results of one image."""

    label: NDArray[np.uint8]
    """(H, W) pseudo label, at the image's size."""
    segments: list[dict[str, Any]]
    """One entry with the fields of `SEGMENT` for each class of the image."""


def score_of(segment: Mapping[str, Any]) -> float:
    """Confidence of a `SEGMENT`, in [0, 1]: SAM's predicted IoU times the mean CAM over the mask."""
    return min(1.0, max(0.0, segment["sam_score"] * segment["cam_mean"]))


class SamLabeller:
    """Labels the images of a chunk with a classifier and SAM on one device.

    An image that fails gets a row with the reason in ``error``; the other images are still labelled. An image
    whose labels are unknown gets a label map of 255 (ignore), and an image that has none of the classes one
    of 0 (background).

    Args:
        classifier: output of train-classifier.
        images: approximate number of images to encode in total (`models.sam.encoder.load_encoder`).
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
        self.config, self.sam_config = with_classifier_side(config, classifier), sam
        self.device = torch.device(device)
        model, self.spec = load_classifier(classifier)
        self.model = model.to(self.device)
        self.encoder = load_encoder(sam, self.device, images)
        self.sam = self.encoder.sam
        # On a CPU, threads gain nothing: labels are encoded one by one, when rows are written.
        self.map = ThreadPoolExecutor(_WRITE_THREADS).map if self.device.type == "cuda" else map

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Label images: rows of `LABEL_SCHEMA`, in order, and counts and times."""
        rows: list[dict[str, Any]] = []
        for image in images:
            error = image.error if image.error is not None else self._beyond(image.image_labels)
            rows.append({"image_id": image.image_id, "error": error})
        good = [at for at, row in enumerate(rows) if row["error"] is None]
        unknown = [at for at in good if images[at].image_labels is None]
        tally = Tally(images=len(good), errors=len(rows) - len(good), unknown=len(unknown))
        good = [at for at in good if images[at].image_labels is not None]
        # Sorting by size fills the classifier's batches, each of which holds images of one size.
        good.sort(key=lambda at: _pixels(images[at]).shape)
        described = []
        for start in range(0, len(good), self.config.batch_size):
            batch = [images[at] for at in good[start : start + self.config.batch_size]]
            described.append(self.map(_describe, batch, self._label(batch, tally)))
        with tally.phase("write"):
            for at, row in zip(good, chain.from_iterable(described)):
                rows[at] |= row
            for at in unknown:
                rows[at] |= _describe_unknown(images[at].image_hw)
            return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), tally

    def _beyond(self, image_labels: Sequence[int] | None) -> str | None:
        beyond = [c for c in image_labels or () if not 0 <= c < len(self.spec.class_names)]
        return (
            f"image label is {beyond[0]}; expected 0 to {len(self.spec.class_names) - 1} for this classifier"
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
            contests = [
                self._compete(group_cams, group_masks, len(members))
                for members, group_cams, group_masks in zip(groups, cams, masks)
            ]
        with tally.phase("write"):
            results: dict[int, _Labelled] = {}
            for members, group_cams, points, contest in zip(groups, cams, points_yx, contests):
                of_group = [batch[at] for at in members]
                results.update(zip(members, _read_back(group_cams, points, contest, of_group)))
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
        chosen = [batch[member] for member in members]
        return cams_of(
            self.model,
            [_pixels(image) for image in chosen],
            [image.image_labels for image in chosen],
            self.config,
        )

    def _compete(self, cams: PairCams, masks: PairMasks, count: int) -> _Contest:
        logits = upscale_masks(self.sam, cams, masks)
        labels, binary = compete(logits, masks.predicted_iou, cams, count, self.config)
        cam_mean = (cams.cam * binary).sum((1, 2)) / binary.sum((1, 2)).clamp(min=1)
        scores = torch.stack([masks.predicted_iou, stability_score(logits), cam_mean], 1)
        return _Contest(labels, binary, scores)


def _read_back(
    cams: PairCams, points_yx: Sequence[Tensor], contest: _Contest, images: Sequence[PreparedImage]
) -> list[_Labelled]:
    """Results of a group of images, at their own sizes; each copy from a GPU serves many masks at once."""
    scores, points_xy = contest.scores.tolist(), _to_host(points_yx)
    image_of, class_of = cams.image_index.tolist(), cams.class_index.tolist()
    segments: list[list[dict[str, Any]]] = [[] for _ in images]
    label_maps: dict[int, NDArray[np.uint8]] = {}
    for image_hw, members in _by_own_size(images).items():
        pairs = [n for n, k in enumerate(image_of) if images[k].image_hw == image_hw]
        masks = resize_label_maps(_pick(contest.masks, pairs), image_hw)
        scale = np.array(image_hw[::-1]) / contest.labels.shape[:0:-1]  # of x and y
        for n, area, rle in zip(pairs, masks.sum((1, 2)).tolist(), encode_rles(masks)):
            entry = dict(zip(("sam_score", "stability_score", "cam_mean"), scores[n]))
            where = {"points_xy": ((points_xy[n] + 0.5) * scale).tolist(), "area": area, "rle": rle}
            segments[image_of[n]].append({"class_index": class_of[n]} | entry | where)
        labels = resize_label_maps(_pick(contest.labels, members), image_hw)
        label_maps.update(zip(members, labels.cpu().numpy()))
    return [_Labelled(label_maps[k], segments[k]) for k in range(len(images))]


def _pick(maps: Tensor, rows: Sequence[int]) -> Tensor:
    return maps[upload(torch.tensor(rows, dtype=torch.long), maps.device)]


def _to_host(points_yx: Sequence[Tensor]) -> list[NDArray[np.int64]]:
    """Points (P, 2) of each pair, (y, x) on the device, as (x, y) on the host; all in one copy."""
    if not points_yx:
        return []
    ends = np.cumsum([len(points) for points in points_yx])[:-1]
    return np.split(torch.cat(list(points_yx)).cpu().numpy()[:, ::-1], ends)


def _by_own_size(images: Sequence[PreparedImage]) -> dict[tuple[int, int], list[int]]:
    """Indices of the images of each own size (H, W), before shrinking."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at, image in enumerate(images):
        members[image.image_hw].append(at)
    return members


def _pixels(image: PreparedImage) -> NDArray[np.uint8]:
    assert image.pixels is not None
    return image.pixels


def _describe_unknown(image_hw: tuple[int, int]) -> dict[str, Any]:
    """Columns of `LABEL_SCHEMA` of an image whose labels are unknown: 255 (ignore) everywhere."""
    return {
        "height": image_hw[0],
        "width": image_hw[1],
        "pseudo_label": encode_mask(np.full(image_hw, IGNORE_LABEL, np.uint8)),
        "segments": [],
    }


def _describe(image: PreparedImage, result: _Labelled) -> dict[str, Any]:
    """One image's columns of `LABEL_SCHEMA`."""
    height, width = image.image_hw
    pseudo_label = encode_mask(result.label)
    return {"height": height, "width": width, "pseudo_label": pseudo_label, "segments": result.segments}
