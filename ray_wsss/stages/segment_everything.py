"""Segment everything: prompt SAM with a grid of points, and paint one segment map per image of a chunk."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ray_wsss.config import SamConfig, SegmentsConfig
from ray_wsss.data.images import encode_segments
from ray_wsss.data.schema import ROWS_PER_GROUP
from ray_wsss.models.promptable.encoder import load_encoder
from ray_wsss.models.promptable.everything import FoundMasks, find_masks, masks_at_image_size
from ray_wsss.ops.resize import resize_map, working_hw
from ray_wsss.ops.segments import paint_segments, rank_masks
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.embed import embeddings_of

SEGMENT = pa.struct(
    [
        pa.field("predicted_iou", pa.float32()),
        pa.field("stability_score", pa.float32()),
        pa.field("point_xy", pa.list_(pa.float32(), 2)),  # the point prompt, in pixels of the image
        pa.field("area", pa.int64()),  # pixels of the segment in the map
    ]
)
SEGMENTS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("segment_map", pa.binary()),  # 16-bit PNG: 0 uncovered, n: the n-th segment, from 1
        pa.field("segments", pa.list_(SEGMENT)),
        pa.field("error", pa.string()),  # reason for a missing map, else null
    ]
)


class SegmentEverything:
    """Segments the images of a chunk with SAM on one device.

    An image that fails gets a row with the reason in ``error``; the other images are still segmented.

    Args:
        images: approximate number of images to encode in total (`models.promptable.encoder.load_encoder`).
    """

    rows_per_group = ROWS_PER_GROUP

    def __init__(self, config: SegmentsConfig, sam: SamConfig, device: str = "cpu", images: int = 0) -> None:
        self.config, self.sam_config = config.suiting(sam.card), sam
        self.device = torch.device(device)
        self.encoder = load_encoder(sam, self.device, images)
        self.sam = self.encoder.sam

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Segment images: rows of `SEGMENTS_SCHEMA`, in order, and counts and times."""
        rows: list[dict[str, Any]] = [{"image_id": image.image_id, "error": image.error} for image in images]
        good = [at for at, image in enumerate(images) if image.error is None]
        tally = Tally(images=len(good), errors=len(rows) - len(good))
        size = self.sam_config.encode_batch_size
        for start in range(0, len(good), size):
            batch = good[start : start + size]
            for at, columns in zip(batch, self._segment([images[at] for at in batch], tally)):
                rows[at] |= columns
        with tally.phase("write"):
            return pa.Table.from_pylist(rows, schema=SEGMENTS_SCHEMA), tally

    @torch.no_grad()
    def _segment(self, batch: Sequence[PreparedImage], tally: Tally) -> list[dict[str, Any]]:
        with tally.phase("encode", self.device):
            embeddings = embeddings_of(self.encoder, batch)
        sizes = [working_hw(image.image_hw, self.config.max_side_px) for image in batch]
        size = self.sam_config.decode_batch_size
        found = find_masks(self.sam, embeddings, sizes, self.config, decode_batch_size=size)
        tally.prompts += len(batch) * self.config.points_per_side**2
        return [self._finish(image, found, size_hw, tally) for image, size_hw in zip(batch, sizes)]

    def _finish(
        self, image: PreparedImage, found: Iterator[FoundMasks], size_hw: tuple[int, int], tally: Tally
    ) -> dict[str, Any]:
        """Find and paint the masks of one image; they are gone before the next one's are found."""
        with tally.phase("prompt", self.device):
            masks = next(found)
            painted = self._paint(masks, size_hw)
        tally.masks += len(masks.areas)
        with tally.phase("write"):
            return _describe(image, masks, *painted)

    def _paint(
        self, masks: FoundMasks, size_hw: tuple[int, int]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Segment map at working size, and the index of the mask behind each of its ids, from id 1."""
        ranks = rank_masks(self.config.overlap, masks.areas, masks.predicted_iou)
        slices = masks_at_image_size(self.sam, masks, size_hw, self.config.max_pixels_per_pass)
        segments, mask_index = paint_segments(slices, ranks, size_hw)
        return segments.cpu().numpy(), mask_index.cpu().numpy()


def _describe(
    image: PreparedImage, masks: FoundMasks, segments: NDArray[np.int32], mask_index: NDArray[np.int64]
) -> dict[str, Any]:
    """One image's columns of `SEGMENTS_SCHEMA`."""
    height, width = image.image_hw
    scale = np.array([width / segments.shape[1], height / segments.shape[0]])
    at_size = resize_map(segments, image.image_hw)
    areas = np.bincount(at_size.ravel(), minlength=len(mask_index) + 1)[1:]
    columns = {
        "predicted_iou": masks.predicted_iou.cpu().numpy()[mask_index].tolist(),
        "stability_score": masks.stability_score.cpu().numpy()[mask_index].tolist(),
        "point_xy": (masks.points_xy.cpu().numpy()[mask_index] * scale).tolist(),
        "area": areas.tolist(),
    }
    return {
        "height": height,
        "width": width,
        "segment_map": encode_segments(at_size),
        "segments": [dict(zip(columns, values)) for values in zip(*columns.values())],
    }
