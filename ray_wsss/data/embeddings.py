"""Image embeddings of a promptable model on disk: fp16, or int8 with a scale per channel.

An embedding is one feature map (SAM) or several (SAM 2.1). Several are stored one after the other.

EMBEDDINGS/shards/part-000000.parquet  see ``EMBEDDING_SCHEMA``
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_wsss.data.reader import ShardReader

if TYPE_CHECKING:
    from torch import Tensor

EmbeddingDtype = Literal["fp16", "int8"]

EMBEDDING_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32()),  # pixels of the image
        pa.field("width", pa.int32()),
        # D, h, w of each map in turn; not a list of fixed size, in which pyarrow before 26 can't read a null.
        pa.field("shape", pa.list_(pa.int32())),
        pa.field("embedding", pa.binary()),  # maps in turn, row-major: int8 if there is a scale, else fp16
        pa.field("scale", pa.list_(pa.float32())),  # int8 only: factor of each channel's values, maps in turn
        pa.field("error", pa.string()),  # why there is no embedding; null if there is one
    ]
)
GROUP_BYTES = 2 * 2**20
"""Bytes of a row group: one embedding of SAM, because training reads single ones at random."""
Shape = tuple[int, int, int]
"""Channels D, height h and width w of a map."""


@dataclass(frozen=True, eq=False)
class StoredEmbedding:
    """An embedding in the form it is stored in."""

    values: NDArray[np.float16 | np.int8]
    """(V,) values of all maps, one map after the other; int8 values are to be multiplied by ``scale``."""
    shapes: tuple[Shape, ...]
    """Shape of each map."""
    scale: NDArray[np.float32] | None = None
    """One for each channel of all maps, for int8; None for fp16."""
    image_hw: tuple[int, int] | None = None
    """Height and width of the image in pixels, where it was read."""


def store_embeddings(
    maps: Sequence[Tensor], dtype: EmbeddingDtype, what: str = "SAM's embedding"
) -> list[StoredEmbedding | ValueError]:
    """Round the embeddings of N images, maps (N, D, h, w), to the type they are stored in, on their device.

    int8 is symmetric: the largest absolute value of a channel becomes 127.

    Args:
        what: name of the embeddings in errors.

    Returns:
        One entry per embedding: an error if values are not finite, or too large for fp16.
    """
    channels = [values.abs().amax((2, 3)) for values in maps]
    if dtype == "fp16":
        values, scale = _join([values.half() for values in maps]), None
    else:
        steps = [largest.clamp(min=1e-12) / 127 for largest in channels]
        values, scale = _join([_to_int8(*pair) for pair in zip(maps, steps)]), _join(steps)
    shapes: Any = tuple(tuple(values.shape[1:]) for values in maps)
    most = float(np.finfo(np.float16).max) if dtype == "fp16" else math.inf
    stored: list[StoredEmbedding | ValueError] = []
    for at, highest in enumerate(_highest(channels)):
        if not math.isfinite(highest):
            stored.append(ValueError(f"{what} has values that are not finite"))
        elif highest > most:
            stored.append(ValueError(f"{what} has the value {highest:g}, beyond half precision"))
        else:
            stored.append(StoredEmbedding(values[at], shapes, scale[at] if scale is not None else None))
    return stored


def _to_int8(values: Tensor, steps: Tensor) -> Tensor:
    return (values / steps[..., None, None]).round().clamp(-127, 127).char()


def _join(parts: Sequence[Tensor]) -> NDArray[Any]:
    """Arrays of N rows, side by side on the host as one array (N, V)."""
    return np.concatenate([part.flatten(1).cpu().numpy() for part in parts], 1)


def _highest(channels: Sequence[Tensor]) -> list[float]:
    """Largest of the values (N, D) of all maps, by image; NaN if one is."""
    return reduce(lambda a, b: a.maximum(b), [values.amax(1) for values in channels]).tolist()


class EmbeddingCache:
    """Stored embeddings, by image id.

    Args:
        what: name of an embedding in errors.
    """

    def __init__(self, folder: Path, what: str = "embedding") -> None:
        self.folder, self.what = folder, what
        self._shards = ShardReader(folder, cache_bytes=32 * 2**20)

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images, including those without an embedding."""
        return self._shards.image_ids

    def read(self, image_id: str, image_hw: tuple[int, int] | None = None) -> StoredEmbedding:
        """Read the embedding of an image of (height, width) ``image_hw`` in pixels; None: of any size.

        Raises:
            ValueError: the image has no embedding, or had another size when it was embedded.
            UserError: a shard is damaged.
        """
        try:
            index = self._shards.index_of(image_id)
        except KeyError:
            raise ValueError(f"{self.folder} has no {self.what} of this image") from None
        row = self._shards.read(index, EMBEDDING_SCHEMA.names)
        if row["embedding"] is None:
            raise ValueError(f"{self.folder} has no {self.what} of this image: {row['error']}")
        found_hw = row["height"], row["width"]
        if image_hw is not None and found_hw != image_hw:
            raise ValueError(
                f"{self.folder} has the {self.what} of an image of {row['width']}x{row['height']} pixels, "
                f"this one has {image_hw[1]}x{image_hw[0]}"
            )
        scale = np.array(row["scale"], np.float32) if row["scale"] is not None else None
        values = np.frombuffer(row["embedding"], np.float16 if scale is None else np.int8)
        shapes = _shapes_of(row["shape"])
        if len(values) != (expected := sum(math.prod(shape) for shape in shapes)):
            raise ValueError(
                f"{self.folder} has {len(values)} values of its {self.what}; expected {expected}"
            )
        return StoredEmbedding(values, shapes, scale, found_hw)

    def require(self, image_ids: list[str], dataset: Path) -> None:
        """Raise UserError unless all these images of ``dataset`` are in the cache."""
        self._shards.require(image_ids, dataset, "embed")


def _shapes_of(numbers: list[int]) -> tuple[Shape, ...]:
    return tuple(zip(*(numbers[k::3] for k in range(3))))


def open_embeddings(folder: Path) -> EmbeddingCache:
    """Open the embeddings in a folder, once per process because reading their index takes a while."""
    return _open(folder, (folder / "manifest.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _open(folder: Path, version: int) -> EmbeddingCache:
    """``version`` changes when the embeddings are made again, so that the old cache is not used for them."""
    return EmbeddingCache(folder)
