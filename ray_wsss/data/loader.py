"""Training crops from Parquet shards, in an order and with an augmentation that the seed alone decides."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from ray_wsss.config import AugmentConfig
from ray_wsss.data.embeddings import EmbeddingCache
from ray_wsss.data.images import decode_image, decode_mask, decode_segments
from ray_wsss.data.plan import collate, pack_geometry
from ray_wsss.data.reader import ShardReader
from ray_wsss.ops.geometry import Geometry
from ray_wsss.ops.losses import IGNORE_LABEL

PADDING = 0.45
"""Grey level of the padding: about ImageNet's mean, so that it is 0 after normalisation."""

Key = tuple[int, int]
"""(iteration x batch + position, row of the data set): which draw of which image."""


def global_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch: a permutation that every worker computes alike."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_images, generator=generator).tolist()


class IterationBatches(Sampler[list[Key]]):
    """A rank's share of each iteration's global batch, from iteration ``start`` on.

    Position p of the endless sequence epoch 0, epoch 1, ... is the same for any number of workers, and
    starting at iteration k equals having run the k iterations before.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert batch_size % world_size == 0
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.start, self.stop = start, stop
        share = batch_size // world_size
        self.mine = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, []
        for iteration in range(self.start, self.stop):
            batch = []
            for p in (iteration * self.batch_size + offset for offset in self.mine):
                if p // self.num_images != epoch:
                    epoch = p // self.num_images
                    order = global_order(self.num_images, self.seed, epoch)
                batch.append((p, order[p % self.num_images]))
            yield batch


class TrainingCrops(Dataset):
    """Augmented crops of a data set, with image labels, and optionally pseudo labels joined by image_id.

    Items: ``image`` (3, P, P) float RGB in [0, 1], ``inside`` (P, P) bool (False: padding),
    ``image_labels`` (C,) float 0/1, ``image_id``; with pseudo labels ``pseudo_label`` (P, P) uint8 (255:
    ignore, padding included); with segment maps ``segments`` (P, P) int32 (0: uncovered, padding included);
    with embeddings of the whole image ``embedding`` (D, h, w) as stored, its ``embedding_scale`` (D,) if it
    has one, ``image_hw`` (2,) and the crop's ``geometry`` (`pack_geometry`).
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
        # Tiny images otherwise pay more for the colour transform's set-up than for its arithmetic.
        brightness, contrast, saturation, hue = augment.jitter
        self.jitter = v2.RandomApply(
            [v2.ColorJitter(brightness, contrast, saturation, hue)], augment.jitter_probability
        )
        self.grey = v2.RandomGrayscale(augment.grey_probability)

    def __len__(self) -> int:
        return len(self.rows)

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
        crop = self._recolour(geometry.apply(image, fill=PADDING).clamp_(0, 1), generator)
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

    def _recolour(self, crop: Tensor, generator: torch.Generator) -> Tensor:
        """Colour jitter and grey; torchvision draws from the global generator, so that is lent ours."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return self.grey(self.jitter(crop))


def _read(reader: ShardReader, image_id: str, column: str) -> bytes:
    return reader.read(reader.index_of(image_id), [column])[column]


def make_loader(
    crops: TrainingCrops, batches: IterationBatches, workers: int, pin_memory: bool
) -> DataLoader:
    """A loader over ``batches`` with ``workers`` decoding processes (0: in this process).

    Its batches are items side by side, and ``plan``: what the host is to know of them (`data.plan.HostPlan`).
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
