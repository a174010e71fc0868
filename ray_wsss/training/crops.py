"""Training crops from Parquet shards; the seed alone decides their order and augmentation."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ray_wsss.config import AugmentConfig
from ray_wsss.data.embeddings import EmbeddingCache
from ray_wsss.data.images import decode_image, decode_mask, decode_segments
from ray_wsss.data.reader import ShardReader
from ray_wsss.ops.geometry import Geometry
from ray_wsss.ops.losses import IGNORE_LABEL
from ray_wsss.training.host_plan import collate, pack_geometry
from ray_wsss.training.order import WINDOW, IterationBatches, Key

PADDING = 0.45
"""Grey level of the padding, in [0, 1]: about ImageNet's mean, so that normalised padding is about 0."""


class TrainingCrops(Dataset):
    """Augmented crops of a data set; pseudo labels, segment maps and embeddings are joined by image_id.

    Every item has ``image`` (3, P, P) float RGB in [0, 1], ``inside`` (P, P) bool (False: padding),
    ``image_labels`` (C,) float 0/1, and ``image_id``. It also has

    - with ``labels``: ``pseudo_label`` (P, P) uint8 (255: ignored pixels and padding);
    - with ``segments``: ``segments`` (P, P) int32 (0: uncovered pixels and padding);
    - with ``embeddings``: ``embedding`` (D, h, w) of the whole image, as stored; ``embedding_scale`` (D,), if
      one is stored; ``image_hw`` (2,), the size of the image in pixels; the crop's ``geometry``
      (`pack_geometry`).
    """

    def __init__(
        self,
        dataset: Path,
        rows: list[int],
        *,
        num_classes: int,
        augment: AugmentConfig,
        seed: int,
        labels: Path | None = None,
        segments: Path | None = None,
        embeddings: Path | None = None,
    ) -> None:
        self.reader = ShardReader(dataset)
        self.labels = ShardReader(labels) if labels is not None else None
        self.segments = ShardReader(segments) if segments is not None else None
        self.embeddings = EmbeddingCache(embeddings) if embeddings is not None else None
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

    def __getitem__(self, key: Key) -> dict[str, Tensor | str]:
        draw, row = key
        record = self.reader.read(self.rows[row], ["image_id", "image", "orientation", "image_labels"])
        image = torch.from_numpy(decode_image(record["image"], record["orientation"])).permute(2, 0, 1)
        image = image.float().div_(255)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        geometry = Geometry.sample(
            (image.shape[1], image.shape[2]),
            long_side_px=self.augment.long_side_px,
            crop_px=self.augment.crop_px,
            flip=self.augment.flip,
            generator=generator,
        )
        inside = geometry.inside()[0]
        crop = geometry.apply(image, fill=PADDING).clamp_(0, 1)
        # The padding keeps its colour. Contrast is changed about the mean of the visible part, not of the
        # whole image: the difference is one of brightness, which is random anyway, and the work is bounded.
        shown = (slice(None), *geometry.visible())
        crop[shown] = self._recolour(crop[shown], generator)
        assert record["image_labels"] is not None  # unknown labels are no target; as an index, None is all
        image_labels = torch.zeros(self.num_classes)
        image_labels[record["image_labels"]] = 1
        item: dict[str, Tensor | str] = {
            "image": crop,
            "inside": inside,
            "image_labels": image_labels,
            "image_id": record["image_id"],
        }
        image_hw = (image.shape[1], image.shape[2])
        if self.labels is not None:
            png = _read(self.labels, record["image_id"], "pseudo_label")
            label = torch.from_numpy(decode_mask(png))[None]
            item["pseudo_label"] = geometry.apply(label, fill=IGNORE_LABEL, nearest=True)[0]
        if self.segments is not None:
            png = _read(self.segments, record["image_id"], "segment_map")
            # An image that SAM failed on has no segments; the other losses still learn from it.
            segments = decode_segments(png) if png is not None else np.zeros(image_hw, np.int32)
            item["segments"] = geometry.apply(torch.from_numpy(segments)[None], fill=0, nearest=True)[0]
        if self.embeddings is not None:
            stored = self.embeddings.read(record["image_id"], image_hw)
            item["embedding"] = torch.tensor(stored.values)
            if stored.scale is not None:
                item["embedding_scale"] = torch.tensor(stored.scale)
            item["image_hw"] = torch.tensor(image_hw)
            item["geometry"] = pack_geometry(geometry)
        return item

    def _recolour(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Apply colour jitter and random grey, seeding the global generator from ``generator`` meanwhile."""
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed GPUs, and note a stack trace for each, which takes longer than
            # the transforms of a small crop.
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return self.grey(self.jitter(pixels))


def _read(reader: ShardReader, image_id: str, column: str) -> bytes:
    return reader.read(reader.index_of(image_id), [column])[column]


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
