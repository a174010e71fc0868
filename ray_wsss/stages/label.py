"""Pseudo labels for the images of a chunk: multi-scale CAM, peaks, prompts, SAM, aggregation.

Every phase has its own batches. The classifier takes images of one size, SAM's encoder images of any size,
and SAM's decoder prompt sets with equally many points, from any images and classes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.images import encode_mask
from ray_wsss.data.rle import encode_rles, rle_areas
from ray_wsss.data.schema import ROWS_PER_GROUP
from ray_wsss.label_format import LabelMap, label_format, labels_to_array
from ray_wsss.models.promptable.encoder import load_encoder
from ray_wsss.models.promptable.interface import Embeddings
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.device import upload
from ray_wsss.ops.resize import group_by_size, resize_label_maps, slices_of
from ray_wsss.ops.tiles import needs_tiles
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.cams import PairCams, cams_of
from ray_wsss.stages.contest import Contest, hold_contest
from ray_wsss.stages.embed import embeddings_of
from ray_wsss.stages.point_prompts import PairMasks, decode_pairs, find_prompts
from ray_wsss.stages.region_prompts import decode_regions
from ray_wsss.stages.tiles.label import TileLabeller

SEGMENT = pa.struct(
    [
        pa.field("class_index", pa.int32()),
        pa.field("points_xy", pa.list_(pa.list_(pa.float32(), 2))),  # pixels of the image, x before y
        pa.field("sam_score", pa.float32()),  # SAM's predicted IoU of the mask
        pa.field("stability_score", pa.float32()),  # IoU of the masks 1 above and 1 below the threshold
        pa.field("cam_mean", pa.float32()),  # mean CAM over the mask, in [0, 1]; null for an annotated object
        pa.field("area", pa.int64()),  # pixels of the mask
        pa.field("rle", pa.string()),  # mask before classes compete, in COCO's compressed RLE
        # Of annotated objects; null for a class that peaks of a CAM prompted. Earlier versions lack them.
        pa.field("object_index", pa.int32()),  # index in the column ``objects`` of the data set
        pa.field("point_labels", pa.list_(pa.int8())),  # 1 for a point on the object, 0 for one beside it
        pa.field("box_xyxy", pa.list_(pa.float32())),  # left, top, right, bottom in pixels of the image
    ]
)
LABEL_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("pseudo_label", pa.binary()),  # PNG label map, see `label_format`
        pa.field("segments", pa.list_(SEGMENT)),
        pa.field("error", pa.string()),  # reason for a missing label, else null
    ]
)
_WRITE_THREADS = 4
"""Threads that encode the labels of a GPU actor, so that the GPU does not wait for PNG encoding."""

_WAITING = 32
"""Pixels of the CAMs in a batch of images, as a multiple of `LabelConfig.max_pixels_per_pass`. With the masks
they take 5 bytes per pixel, against up to 1 KiB for the activations of a backbone."""


def score_of(segment: Mapping[str, Any]) -> float:
    """Confidence of a `SEGMENT`, in [0, 1]: SAM's predicted IoU, times the mean CAM over the mask if there
    is a CAM."""
    cam_mean = segment["cam_mean"] if segment["cam_mean"] is not None else 1.0
    return min(1.0, max(0.0, segment["sam_score"] * cam_mean))


class SamLabeller:
    """Labels the images of a chunk with a classifier and SAM on one device.

    An image that fails gets a row with the reason in ``error``; the other images are still labelled. An image
    whose labels are unknown gets a label map of ignored pixels, and an image that has none of the classes one
    of 0 (background).

    Args:
        classifier: output of train-classifier.
        images: approximate number of images to encode in total (`models.promptable.encoder.load_encoder`).
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
        self.format = label_format(len(self.spec.class_names))
        self.encoder = load_encoder(sam, self.device, images)
        self.sam = self.encoder.sam
        self.label_in_tiles = TileLabeller(self.model, self.encoder, self.config, sam)
        # On a CPU, threads gain nothing: labels are encoded at once, one by one.
        self.writers = ThreadPoolExecutor(_WRITE_THREADS) if self.device.type == "cuda" else None

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
        large = [at for at in good if needs_tiles(images[at].image_hw, self.config.tile_px)]
        for at in large:
            rows[at] |= self._label_large(images[at], tally)
        good = [at for at in good if at not in large]
        # Sorting by size fills the classifier's batches, each of which holds images of one size.
        good.sort(key=lambda at: _pixels(images[at]).shape)
        described: list[Callable[[], dict[str, Any]]] = []
        for batch in self._batches([images[at] for at in good]):
            described += self._label(batch, tally)
        with tally.phase("write"):
            for at, columns in zip(good, described):
                rows[at] |= columns()
            for at in unknown:
                rows[at] |= describe(np.full(images[at].image_hw, self.format.ignore, self.format.dtype))
            return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), tally

    def _label_large(self, image: PreparedImage, tally: Tally) -> dict[str, Any]:
        """Columns of an image that is labelled in tiles, or the reason in ``error``."""
        try:
            with tally.phase("cam"):  # the phase "decode" is the time of the tasks beside the actors
                pixels = image.decode()
        except ValueError as error:
            tally.images, tally.errors = tally.images - 1, tally.errors + 1
            return {"error": str(error)}
        label, segments = self.label_in_tiles(pixels, image.image_labels or (), tally)
        with tally.phase("write"):
            return describe(label, segments)

    def _batches(self, images: Sequence[PreparedImage]) -> Iterator[list[PreparedImage]]:
        """Cut images into batches by their number and by the pixels of their pairs, one image at least."""
        batch: list[PreparedImage] = []
        most, pixels = _WAITING * self.config.max_pixels_per_pass, 0
        for image in images:
            own = len(image.image_labels or ()) * _pixels(image)[..., 0].size
            if batch and (len(batch) == self.config.batch_size or pixels + own > most):
                yield batch
                batch, pixels = [], 0
            batch.append(image)
            pixels += own
        if batch:
            yield batch

    def _beyond(self, image_labels: Sequence[int] | None) -> str | None:
        beyond = [c for c in image_labels or () if not 0 <= c < len(self.spec.class_names)]
        return (
            f"image label is {beyond[0]}; expected 0 to {len(self.spec.class_names) - 1} for this classifier"
            if beyond
            else None
        )

    @torch.no_grad()
    def _label(self, batch: Sequence[PreparedImage], tally: Tally) -> list[Callable[[], dict[str, Any]]]:
        """Functions that return the columns of each image, in order; threads may still be at work on them."""
        with tally.phase("cam", self.device):
            pixels, config = [_pixels(image) for image in batch], self.config
            groups = group_by_size(pixels, config.cam_batch_size, config.max_batch_pixels)
            cams = [self._cams(batch, members) for members in groups]
        with tally.phase("encode", self.device):
            embeddings = embeddings_of(self.encoder, batch)
        with tally.phase("prompt", self.device):
            most = config.max_map_pixels
            points_yx = [find_prompts(group, config, guess=True, max_pixels=most) for group in cams]
            over_all = [
                replace(group, image_index=torch.tensor(members)[group.image_index])
                for group, members in zip(cams, groups)
            ]
            masks = self._decode(embeddings, over_all, points_yx)
            contests = [
                hold_contest(self.sam, group_cams, group_masks, len(members), config, most)
                for members, group_cams, group_masks in zip(groups, cams, masks)
            ]
        with tally.phase("write"):
            described: dict[int, Callable[[], dict[str, Any]]] = {}
            for members, group_cams, points, contest in zip(groups, cams, points_yx, contests):
                of_group = [batch[at] for at in members]
                for k, label, segments in _read_back(group_cams, points, contest, of_group, most):
                    described[members[k]] = self._describe(label, segments)
        tally.masks += sum(len(points) for points in points_yx)
        tally.prompts += sum(len(points) for group in points_yx for points in group)
        return [described[at] for at in range(len(batch))]

    def _describe(self, label: LabelMap, segments: list[dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        if self.writers is not None:
            return self.writers.submit(describe, label, segments).result
        columns = describe(label, segments)
        return lambda: columns

    def _decode(
        self, embeddings: Embeddings, cams: Sequence[PairCams], points_yx: Sequence[list[Tensor]]
    ) -> list[PairMasks]:
        size = self.sam_config.decode_batch_size
        if self.config.prompts != "points":
            return decode_regions(self.sam, embeddings, cams, points_yx, self.config, size)
        return decode_pairs(self.sam, embeddings, cams, points_yx, self.config, size)

    def _cams(self, batch: Sequence[PreparedImage], members: list[int]) -> PairCams:
        chosen = [batch[member] for member in members]
        return cams_of(
            self.model,
            [_pixels(image) for image in chosen],
            [image.image_labels for image in chosen],
            self.config,
        )


def _read_back(
    cams: PairCams,
    points_yx: Sequence[Tensor],
    contest: Contest,
    images: Sequence[PreparedImage],
    max_pixels: int,
) -> Iterator[tuple[int, LabelMap, list[dict[str, Any]]]]:
    """Index, label map and segments of each image of a group, at its own size.

    Each copy from a GPU serves as many masks, or labels, as have ``max_pixels`` pixels; at least one.
    """
    scores, points_xy = contest.scores.tolist(), _to_host(points_yx)
    image_of, class_of = cams.image_index.tolist(), cams.class_index.tolist()
    segments: list[list[dict[str, Any]]] = [[] for _ in images]
    for image_hw, members in by_own_size(images).items():
        pairs = [n for n, k in enumerate(image_of) if images[k].image_hw == image_hw]
        rles = _encode_at(contest.masks, pairs, image_hw, max_pixels)
        scale = np.array(image_hw[::-1]) / contest.labels.shape[:0:-1]  # of x and y
        for n, area, rle in zip(pairs, rle_areas(rles, image_hw), rles):
            entry = dict(zip(("sam_score", "stability_score", "cam_mean"), scores[n]))
            where = {"points_xy": ((points_xy[n] + 0.5) * scale).tolist(), "area": area, "rle": rle}
            segments[image_of[n]].append({"class_index": class_of[n]} | entry | where)
        for part in slices_of(len(members), math.prod(image_hw), max_pixels):
            labels = resize_label_maps(_pick(contest.labels, members[part]), image_hw)
            for k, label in zip(members[part], labels_to_array(labels)):
                yield k, label, segments[k]


def _encode_at(masks: Tensor, rows: list[int], image_hw: tuple[int, int], max_pixels: int) -> list[str]:
    """RLE of some of the masks (N, h, w), resized to (H, W), a few at a time."""
    encoded: list[str] = []
    for part in slices_of(len(rows), math.prod(image_hw), max_pixels):
        encoded += encode_rles(resize_label_maps(_pick(masks, rows[part]), image_hw))
    return encoded


def _pick(maps: Tensor, rows: Sequence[int]) -> Tensor:
    return maps[upload(torch.tensor(rows, dtype=torch.long), maps.device)]


def _to_host(points_yx: Sequence[Tensor]) -> list[NDArray[np.int64]]:
    """Points (P, 2) of each pair, (y, x) on the device, as (x, y) on the host; all in one copy."""
    if not points_yx:
        return []
    ends = np.cumsum([len(points) for points in points_yx])[:-1]
    return np.split(torch.cat(list(points_yx)).cpu().numpy()[:, ::-1], ends)


def by_own_size(images: Sequence[PreparedImage]) -> dict[tuple[int, int], list[int]]:
    """Indices of the images of each own size (H, W), before shrinking."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at, image in enumerate(images):
        members[image.image_hw].append(at)
    return members


def _pixels(image: PreparedImage) -> NDArray[np.uint8]:
    assert image.pixels is not None
    return image.pixels


def describe(label_map: LabelMap, segments: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """One image's columns of `LABEL_SCHEMA`, from its label map (H, W), which has the image's size."""
    height, width = label_map.shape
    return {
        "height": height,
        "width": width,
        "pseudo_label": encode_mask(label_map),
        "segments": list(segments),
    }
