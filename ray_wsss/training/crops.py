"""Training crops from Parquet shards; the seed alone decides their order and augmentation.

If an image can't be read, a crop of another image takes its place in the batch. Which one follows from the
seed, the place and the data set, so workers need not agree on it: the batch is the same for any number of
them, keeps its size, and weighs as much as every other one.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ray_wsss.config import AugmentConfig
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.embeddings import EmbeddingCache
from ray_wsss.data.features import FeatureCrops, FeatureViews
from ray_wsss.data.image_files.decoded import DecodedImages
from ray_wsss.data.images import decode_image, decode_mask, decode_segments
from ray_wsss.data.reader import ShardReader
from ray_wsss.errors import UserError
from ray_wsss.label_format import LabelMap, ignore_label, labels_to_tensor
from ray_wsss.ops.geometry import Geometry
from ray_wsss.runs.curation.masks import HandMasks
from ray_wsss.runs.failures import fault_of, reason_of
from ray_wsss.stages.label import score_of
from ray_wsss.training.host_plan import collate, pack_geometry
from ray_wsss.training.order import WINDOW, IterationBatches, Key

_Seen = tuple[dict[str, Any], Geometry, tuple[int, int]]
"""What the network sees of an image, the geometry of that crop, and the image's height and width."""
PADDING = 0.45
"""Grey level of the padding, in [0, 1]: about ImageNet's mean, so that normalised padding is about 0."""
_NEIGHBOURS = 64
"""Images after a broken one that are tried first in its place; most are in memory already."""
_MOST_TRIED = 1000
"""Most images that are tried in place of a broken one."""


class TrainingCrops(Dataset):
    """Augmented crops of a data set; pseudo labels, segment maps and embeddings are joined by image_id.

    Every item has ``image`` (3, P, P) float RGB in [0, 1], ``inside`` (P, P) bool (False: padding),
    ``image_labels`` (C,) float 0/1, and ``image_id``. It also has

    - with ``features``, in place of ``image``: ``cells`` (D, n, n), the crop of the stored feature map, 0 in
      the padding, and ``cells_inside`` (), the share of cells in the image; no image is read, and colours
      don't change;
    - with ``labels``: ``pseudo_label`` (P, P), uint8 or int32 by `label_format`; padding is ignored; with
      ``corrections`` it is the corrected mask of an image that has one, and ``weight`` () is that of the
      image's pixels in the loss; with ``by_score``, ``pixel_weight`` (P, P) is that of each pixel: the score
      of its mask in [0, 1], 1 for background and corrected masks, 0 for padding;
    - with ``segments``: ``segments`` (P, P) int32 (0: uncovered pixels and padding);
    - with ``embeddings``: ``embedding`` (V,) of the whole image, as stored; ``embedding_scale`` (C,), if
      one is stored; ``image_hw`` (2,), the size of the image in pixels; the crop's ``geometry``
      (`pack_geometry`);
    - in place of a broken image: ``broken``, (draw, image_id, reason) of that image. The other entries are
      those of the image that replaces it.
    """

    def __init__(
        self,
        dataset: Path,
        rows: list[int],
        *,
        num_classes: int,
        augment: AugmentConfig,
        seed: int,
        labels: Path | Sequence[Path] | None = None,
        corrections: HandMasks | None = None,
        correction_weight: float = 1.0,
        by_score: bool = False,
        segments: Path | None = None,
        embeddings: Path | None = None,
        features: FeatureViews | None = None,
    ) -> None:
        self.reader = ShardReader(dataset)
        self.corrections, self.correction_weight = corrections, correction_weight
        self.by_score = by_score
        self.labels = ShardReader(labels) if labels is not None else None
        self.segments = ShardReader(segments) if segments is not None else None
        self.embeddings = EmbeddingCache(embeddings) if embeddings is not None else None
        self.features = FeatureCrops(features) if features is not None else None
        self.decoded = DecodedImages()
        self.rows, self.num_classes, self.augment, self.seed = rows, num_classes, augment, seed
        # Made once: with tiny images, making the colour transforms takes longer than applying them.
        brightness, contrast, saturation, hue = augment.jitter
        self.jitter = v2.RandomApply(
            [v2.ColorJitter(brightness, contrast, saturation, hue)], augment.jitter_probability
        )
        self.grey = v2.RandomGrayscale(augment.grey_probability)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, *, batch_size: int, start: int, stop: int, rank: int = 0, world_size: int = 1
    ) -> IterationBatches:
        """A rank's share of the batches of iterations ``start`` to ``stop`` - 1."""
        groups, pieces = self.reader.places_of(self.rows)
        return IterationBatches(
            groups.tolist(),
            pieces.tolist(),
            batch_size=batch_size,
            seed=self.seed,
            start=start,
            stop=stop,
            rank=rank,
            world_size=world_size,
            window=self.window,
        )

    @property
    def window(self) -> int:
        """Number of pieces to draw from at a time: as many as every reader caches, from 1 to `WINDOW`."""
        readers = (reader for reader in (self.reader, self.labels, self.segments) if reader is not None)
        return max(1, min(WINDOW, *(reader.cache_bytes // reader.piece_bytes for reader in readers)))

    def image_ids(self, indices: Iterable[int]) -> list[str]:
        """Image ids of the crops at these indices."""
        return [self.reader.image_ids[self.rows[index]] for index in indices]

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The crop of an image, or of one that replaces it if it is broken.

        Raises:
            UserError: a shard is damaged, or none of the `_MOST_TRIED` images after this one can be used.
        """
        draw, row = key
        crop = self._try_crop(draw, row)
        if not isinstance(crop, str):
            return crop
        image_id = self.reader.read(self.rows[row], ["image_id"])["image_id"]
        return self._replace(draw, row, crop) | {"broken": (draw, image_id, crop)}

    def _replace(self, draw: int, row: int, reason: str) -> dict[str, Any]:
        """Crop of another image: a random one of those close behind, or else of those further on."""
        count = min(len(self) - 1, _MOST_TRIED)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        steps = [1 + step for step in torch.randperm(count, generator=generator).tolist()]
        for step in sorted(steps, key=lambda step: step // _NEIGHBOURS):
            crop = self._try_crop(draw, (row + step) % len(self))
            if not isinstance(crop, str):
                return crop
        all_of = "all" if count == len(self) - 1 else "a series of"
        raise UserError(
            f"{all_of} {count + 1:,} images of {self.reader.dataset} can't be used for training; "
            f"expected one that can; the first one: {reason}"
        )

    def _try_crop(self, draw: int, row: int) -> dict[str, Any] | str:
        """The crop of an image, or the reason why there is none."""
        try:
            return self._crop(draw, row)
        except Exception as error:  # one image must not stop the others
            if fault_of(error) != "image":
                raise
            return str(error) if isinstance(error, ValueError) else reason_of(error)

    def _crop(self, draw: int, row: int) -> dict[str, Any]:
        record = self.reader.read(self.rows[row], ["image_id", "image_labels"])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        cut_out = self._pixels_of if self.features is None else self._cells_of
        seen, geometry, image_hw = cut_out(row, generator)
        # Of label maps, the caller has chosen the rows: a mask made by hand needs no image labels.
        if record["image_labels"] is None and self.labels is None:
            raise ValueError("its image labels are unknown, and so no target")
        image_labels = torch.zeros(self.num_classes)
        image_labels[record["image_labels"] or []] = 1
        item: dict[str, Any] = seen | {
            "inside": geometry.inside()[0],
            "image_labels": image_labels,
            "image_id": record["image_id"],
        }
        if self.labels is not None:
            label_map = self.decoded.get(record["image_id"], lambda: self._label_of(record["image_id"]))
            found = _of_size(label_map, image_hw, "pseudo label")
            label, ignore = labels_to_tensor(found)[None], ignore_label(found)
            largest = int(label.masked_fill(label == ignore, 0).max())
            if largest > self.num_classes:
                raise ValueError(f"the pseudo label has {largest}; expected at most {self.num_classes}")
            item["pseudo_label"] = geometry.apply(label, fill=ignore, nearest=True)[0]
            if self.by_score:
                scores = torch.from_numpy(self._scores_of(record["image_id"], found))[None]
                item["pixel_weight"] = geometry.apply(scores, fill=0, nearest=True)[0]
        if self.corrections is not None:
            corrected = record["image_id"] in self.corrections
            item["weight"] = torch.tensor(self.correction_weight if corrected else 1.0)
        if self.segments is not None:
            png = _read(self.segments, record["image_id"], "segment_map")
            # An image that SAM failed on has no segments; the other losses still learn from it.
            segments = decode_segments(png) if png is not None else np.zeros(image_hw, np.int32)
            _of_size(segments, image_hw, "segment map")
            item["segments"] = geometry.apply(torch.from_numpy(segments)[None], fill=0, nearest=True)[0]
        if self.embeddings is not None:
            stored = self.embeddings.read(record["image_id"], image_hw)
            item["embedding"] = torch.tensor(stored.values)
            if stored.scale is not None:
                item["embedding_scale"] = torch.tensor(stored.scale)
            item["image_hw"] = torch.tensor(image_hw)
            item["geometry"] = pack_geometry(geometry)
        return item

    def _pixels_of(self, row: int, generator: torch.Generator) -> _Seen:
        pixels = self.decoded.get(row, lambda: self._decode(row))
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
        image_hw = (image.shape[1], image.shape[2])
        geometry = self._sample(image_hw, generator)
        crop = geometry.apply(image, fill=PADDING).clamp_(0, 1)
        # The padding keeps its colour. Contrast is changed about the mean of the visible part, not of the
        # whole image: the difference is one of brightness, which is random anyway, and the work is bounded.
        shown = (slice(None), *geometry.visible())
        crop[shown] = self._recolour(crop[shown], generator)
        return {"image": crop}, geometry, image_hw

    def _decode(self, row: int) -> NDArray[np.uint8]:
        record = self.reader.read(self.rows[row], ["image", "orientation"])
        return decode_image(record["image"], record["orientation"])

    def _cells_of(self, row: int, generator: torch.Generator) -> _Seen:
        assert self.features is not None
        image_id = self.reader.read(self.rows[row], ["image_id"])["image_id"]
        stored, image_hw = self.features.read(image_id)
        geometry = self._sample(image_hw, generator)
        cells, inside = self.features.cut(stored, geometry)
        return {"cells": cells, "cells_inside": inside.float().mean()}, geometry, image_hw

    def _sample(self, image_hw: tuple[int, int], generator: torch.Generator) -> Geometry:
        augment = self.augment
        return Geometry.sample(
            image_hw,
            long_side_px=augment.long_side_px,
            crop_px=augment.crop_px,
            flip=augment.flip,
            generator=generator,
        )

    def _label_of(self, image_id: str) -> LabelMap:
        """Corrected mask of an image, or else its pseudo label."""
        if self.corrections is not None and image_id in self.corrections:
            return self.corrections.read(image_id)
        assert self.labels is not None
        return decode_mask(_read(self.labels, image_id, "pseudo_label"), self.num_classes)

    def _scores_of(self, image_id: str, label: LabelMap) -> NDArray[np.float32]:
        """Score (H, W) of the mask that each pixel's label comes from; the higher one where masks overlap."""
        scores = np.ones(label.shape, np.float32)
        if self.corrections is not None and image_id in self.corrections:
            return scores
        assert self.labels is not None
        segments = _read(self.labels, image_id, "segments") or []
        for segment in sorted(segments, key=score_of):
            mask = decode_rle(segment["rle"], (label.shape[0], label.shape[1]))
            scores[mask & (label == 1 + segment["class_index"])] = score_of(segment)
        return scores

    def _recolour(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Apply colour jitter and random grey, seeding the global generator from ``generator`` meanwhile."""
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed GPUs, and note a stack trace for each, which takes longer than
            # the transforms of a small crop.
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return self.grey(self.jitter(pixels))


def _read(reader: ShardReader, image_id: str, column: str) -> Any:
    try:
        row = reader.index_of(image_id)
    except KeyError:
        raise ValueError(f"{reader.dataset} has no row of this image") from None
    return reader.read(row, [column])[column]


def _of_size(found: NDArray[Any], image_hw: tuple[int, int], what: str) -> NDArray[Any]:
    """The map itself. Raises ValueError if it does not have the size of its image."""
    if found.shape != image_hw:
        size, expected = (f"{width}x{height}" for height, width in (found.shape, image_hw))
        raise ValueError(f"the {what} is {size} pixels, its image {expected}")
    return found


def make_loader(
    crops: TrainingCrops, batches: IterationBatches, workers: int, pin_memory: bool
) -> DataLoader:
    """A loader over ``batches`` with ``workers`` decoding processes (0: decode in this process).

    Its batches are collated items, plus ``plan``, which stays on the host (`training.host_plan.HostPlan`).
    """
    return DataLoader(
        crops,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=False,
        multiprocessing_context="spawn" if workers else None,
    )


def iterate(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """The batches of a loader. Of a UserError in one of its processes only the message is kept."""
    try:
        yield from loader
    except UserError as error:
        # torch puts a traceback into the message.
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error
