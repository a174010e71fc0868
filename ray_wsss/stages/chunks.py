"""Units of work: a few dozen consecutive images of a data set, read and decoded on a CPU.

What comes out of a chunk depends on the chunk alone, so that a run that was interrupted, or that other
actors did, gives the same bytes. One chunk in is one file out (`stages.parts`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from ray_wsss.data.embeddings import open_embeddings
from ray_wsss.data.images import decode_image
from ray_wsss.data.reader import open_shard, shard_paths
from ray_wsss.data.schema import ROWS_PER_GROUP
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path, read_side_by_side

ROWS_PER_CHUNK = ROWS_PER_GROUP
"""At most. A row group of ingest's shards, so that a chunk is read without its neighbours."""
IMAGE_COLUMNS = ("image_id", "image", "orientation", "image_labels")
"""What a stage that looks at images reads of a data set."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one shard."""

    index: int
    """Position in the data set's plan, from 0."""
    path: str
    first_row: int
    rows: int


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedImage:
    """An image as the actor with the networks gets it."""

    image_id: str
    image_hw: tuple[int, int] = (0, 0)
    """Size of the image itself, in pixels; what follows may be smaller."""
    image_labels: tuple[int, ...] = ()
    pixels: NDArray[np.uint8] | None = None
    """(h, w, 3) RGB, at most ``max_side_px``: what the classifier sees, and the size of the masks."""
    sam_pixels: NDArray[np.uint8] | None = None
    """(a, b, 3) RGB for SAM's encoder, where that does not take ``pixels`` and there is no embedding."""
    embedding: NDArray[np.float16 | np.int8] | None = None
    """(D, h, w) as stored in the cache (`data.embeddings`)."""
    embedding_scale: NDArray[np.float32] | None = None
    """(D,) for int8, else None."""
    error: str | None = None
    """Why there are no pixels."""

    @property
    def for_sam(self) -> NDArray[np.uint8]:
        """What SAM's encoder takes, where there is no embedding."""
        pixels = self.sam_pixels if self.sam_pixels is not None else self.pixels
        assert pixels is not None
        return pixels


def plan_chunks(dataset: Path, rows: int = ROWS_PER_CHUNK) -> list[Chunk]:
    """Cut every shard of ``dataset`` into chunks of at most ``rows`` rows; the same for every call.

    Raises:
        UserError: no such folder, no shards in it, or a damaged one.
    """
    chunks: list[Chunk] = []
    paths = shard_paths(dataset)
    for path, length in zip(paths, read_side_by_side(_length_of, paths)):
        for first in range(0, length, rows):
            chunks.append(Chunk(len(chunks), str(path.absolute()), first, min(rows, length - first)))
    if not chunks:
        raise UserError(f"{dataset} has shards without a row; expected at least one image")
    return chunks


def _length_of(path: Path) -> int:
    """Rows of a shard."""
    with open_shard(path) as file:
        _check_columns(path, file.schema_arrow)
        return file.metadata.num_rows


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in IMAGE_COLUMNS if name not in schema.names]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}'; expected a shard written by 'ray-wsss ingest'")


def read_chunk(chunk: Chunk, columns: Sequence[str]) -> pa.Table:
    """The rows of a chunk; of the shard, only the row groups that hold them are read."""
    with open_shard(parse_path(chunk.path)) as file:
        groups, before, end = [], 0, 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            if start < chunk.first_row + chunk.rows and end > chunk.first_row:
                before = before if groups else start
                groups.append(group)
        try:
            table = file.read_row_groups(groups, columns=list(columns), use_threads=False)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{chunk.path} is damaged ({error}); write it again") from error
    table = table.slice(chunk.first_row - before, chunk.rows)
    if len(table) != chunk.rows:
        raise UserError(
            f"{chunk.path} has lost rows since the run began; "
            f"expected {chunk.rows} from row {chunk.first_row} on"
        )
    return table


class PrepareImages:
    """Decodes the images of a chunk and brings them to the sizes that the networks want.

    Args:
        max_side_px: of the working copy; None where only SAM looks at the image.
        sam_side_px: long side of SAM's input.
        embeddings: cache of SAM's embeddings, read instead of making SAM's input.
        resize: to SAM's input. Without, only images that are larger are made smaller: the encoder's device
            does the others, and fewer bytes travel.
    """

    def __init__(
        self,
        *,
        max_side_px: int | None = None,
        sam_side_px: int,
        embeddings: Path | None = None,
        resize: bool = True,
    ) -> None:
        self.max_side_px, self.resize_all = max_side_px, resize
        self.embeddings = embeddings.absolute() if embeddings is not None else None  # for other processes
        self.resize = ResizeLongestSide(sam_side_px)

    def __call__(self, chunk: Chunk) -> list[PreparedImage]:
        """One entry per row, in order; a row that fails has its reason in ``error``."""
        return [self._prepare(row) for row in read_chunk(chunk, IMAGE_COLUMNS).to_pylist()]

    def _prepare(self, row: dict[str, Any]) -> PreparedImage:
        image_id = str(row["image_id"])
        try:
            if row["image"] is None:
                raise ValueError("there is no image in the row")
            pixels = decode_image(row["image"], _orientation_of(row))
            return self.prepare(image_id, pixels, _labels_of(row))
        except ValueError as error:
            return PreparedImage(image_id=image_id, error=str(error))

    def prepare(
        self, image_id: str, pixels: NDArray[np.uint8], image_labels: tuple[int, ...]
    ) -> PreparedImage:
        """One decoded image (H, W, 3). Raises ValueError where it is too thin for SAM."""
        working = shrink(pixels, self.max_side_px) if self.max_side_px is not None else None
        return PreparedImage(
            image_id=image_id,
            image_hw=(pixels.shape[0], pixels.shape[1]),
            image_labels=image_labels,
            pixels=working,
            **self._sam_input(image_id, pixels, working),
        )

    def _sam_input(
        self, image_id: str, pixels: NDArray[np.uint8], working: NDArray[np.uint8] | None
    ) -> dict[str, Any]:
        if self.embeddings is not None:
            found = open_embeddings(self.embeddings).read(image_id, (pixels.shape[0], pixels.shape[1]))
            return {"embedding": found.values, "embedding_scale": found.scale}
        height, width = pixels.shape[:2]
        if min(self.resize.get_preprocess_shape(height, width, self.resize.target_length)) < 1:
            raise ValueError(f"{width}x{height} pixels are too thin for SAM's input")
        if not self.resize_all and max(height, width) <= self.resize.target_length:
            return {"sam_pixels": pixels} if working is not pixels else {}
        return {"sam_pixels": self.resize.apply_image(pixels)}


def _labels_of(row: dict[str, Any]) -> tuple[int, ...]:
    labels = row["image_labels"]
    if labels is None:
        return ()
    if not isinstance(labels, list) or not all(type(c) is int and abs(c) < 2**31 for c in labels):
        raise ValueError(f"the image labels are {labels}; expected class indices")
    return tuple(labels)


def _orientation_of(row: dict[str, Any]) -> int:
    orientation = row["orientation"] or 1
    if not isinstance(orientation, int):
        raise ValueError(f"orientation is {orientation}; expected an EXIF orientation from 1 to 8")
    return orientation


def working_hw(image_hw: tuple[int, int], max_side_px: int) -> tuple[int, int]:
    """Size (height, width) at which an image is worked on: its own, or a long side of ``max_side_px``."""
    scale = min(1.0, max_side_px / max(image_hw))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def shrink(pixels: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    """An image (H, W, 3) uint8 at its working size (antialiased)."""
    image_hw = (pixels.shape[0], pixels.shape[1])
    size_hw = working_hw(image_hw, max_side_px)
    if size_hw == image_hw:
        return pixels
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(source, size_hw, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def resize_map(label_map: NDArray, image_hw: tuple[int, int]) -> NDArray:
    """A label map, mask or segment map (h, w) of working size at the image's size (nearest)."""
    if label_map.shape == image_hw:
        return label_map
    return resize_label_maps(torch.from_numpy(label_map)[None], image_hw)[0].numpy()


def resize_label_maps(maps: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """`resize_map` for N of them (N, h, w), on their device."""
    if maps.shape[1:] == image_hw:
        return maps
    if not len(maps):
        return maps.new_zeros(0, *image_hw)
    # Exact: what is not a byte is a label below 2**24.
    source = maps.to(torch.uint8 if maps.dtype in (torch.bool, torch.uint8) else torch.float32)
    return F.interpolate(source[:, None], image_hw, mode="nearest-exact")[:, 0].to(maps.dtype)


_ARRAYS = ("pixels", "sam_pixels", "embedding", "embedding_scale")
_ARRAY = pa.struct(
    [
        pa.field("data", pa.large_binary()),
        pa.field("shape", pa.list_(pa.int32())),
        pa.field("dtype", pa.string()),
    ]
)
_IMAGE = pa.struct(
    [
        pa.field("image_id", pa.string()),
        pa.field("image_hw", pa.list_(pa.int32(), 2)),
        pa.field("image_labels", pa.list_(pa.int32())),
        pa.field("error", pa.string()),
        *[pa.field(name, _ARRAY) for name in _ARRAYS],
    ]
)


def pack_images(images: Sequence[PreparedImage]) -> pa.Array:
    """Images as an Arrow array of one list, to travel between processes as one row that nothing splits."""
    rows = []
    for image in images:
        row = {f.name: getattr(image, f.name) for f in fields(image)}
        rows.append(row | {name: _pack_array(row[name]) for name in _ARRAYS})
    return pa.array([rows], pa.large_list(_IMAGE))


def unpack_images(packed: pa.Array) -> list[PreparedImage]:
    """What `pack_images` packed. The arrays are views of ``packed``."""
    rows = packed.flatten()
    columns: dict[str, list[Any]] = {name: _views(rows.field(name)) for name in _ARRAYS}
    for name in (f.name for f in _IMAGE if f.name not in _ARRAYS):
        values = rows.field(name).to_pylist()
        columns[name] = [tuple(value) if isinstance(value, list) else value for value in values]
    return [PreparedImage(**dict(zip(columns, values))) for values in zip(*columns.values())]


def _pack_array(array: NDArray | None) -> dict[str, Any] | None:
    if array is None:
        return None
    return {"data": np.ascontiguousarray(array).data, "shape": array.shape, "dtype": array.dtype.name}


def _views(packed: pa.StructArray) -> list[NDArray | None]:
    """The arrays of a column. Arrow's own way to a value's bytes would copy them."""
    data = packed.field("data")
    _, offsets, values = data.buffers()
    starts = np.frombuffer(offsets, np.int64)[data.offset :] if offsets is not None else []
    shapes, dtypes = packed.field("shape").to_pylist(), packed.field("dtype").to_pylist()
    views: list[NDArray | None] = []
    for k, valid in enumerate(packed.is_valid().to_pylist()):
        count = math.prod(shapes[k]) if valid else 0
        view = np.frombuffer(values, dtypes[k], count, int(starts[k])) if count else None
        views.append(view.reshape(shapes[k]) if view is not None else None)
    return views
