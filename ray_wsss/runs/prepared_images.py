"""The images of a chunk as the actor with the networks gets them: decoded on a CPU, sent as one Arrow row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide

from ray_wsss.data.embeddings import open_embeddings
from ray_wsss.data.images import decode_image
from ray_wsss.ops.resize import shrink
from ray_wsss.runs.chunks import IMAGE_COLUMNS, Chunk, read_chunk


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
