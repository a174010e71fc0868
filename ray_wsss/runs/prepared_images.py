"""Images of a chunk, decoded on a CPU and sent as one Arrow row to the actor that runs the networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.data.embeddings import open_embeddings
from ray_wsss.data.images import decode_image
from ray_wsss.runs.failures import fault_of, reason_of
from ray_wsss.runs.read_chunks import IMAGE_COLUMNS, Chunk, read_chunk


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedImage:
    """An image as the actor that runs the networks gets it, or the reason why there is none."""

    image_id: str
    image_hw: tuple[int, int] = (0, 0)
    """(height, width) of the original image in pixels; the arrays below may be smaller."""
    image_labels: tuple[int, ...] | None = None
    """Class indices from 0; empty if the image has none of the classes, None if nobody knows."""
    pixels: NDArray[np.uint8] | None = None
    """(h, w, 3) RGB, long side at most ``max_side_px``; CAMs and masks have the same size."""
    sam_pixels: NDArray[np.uint8] | None = None
    """(a, b, 3) RGB input of SAM's encoder; None if it takes ``pixels`` or an embedding replaces it."""
    embedding: NDArray[np.float16 | np.int8] | None = None
    """(D, h, w) SAM embedding, as `data.embeddings` stores it; None without stored embeddings."""
    embedding_scale: NDArray[np.float32] | None = None
    """(D,) scale of each channel of an int8 embedding, else None."""
    error: str | None = None
    """Reason why the image could not be prepared; None if it could."""

    @property
    def for_sam(self) -> NDArray[np.uint8]:
        """(a, b, 3) RGB input of SAM's encoder, for an image without an embedding."""
        pixels = self.sam_pixels if self.sam_pixels is not None else self.pixels
        assert pixels is not None
        return pixels


class PrepareImages:
    """Decodes the images of a chunk and resizes them to the sizes that the networks take.

    The processes that do only this need no torch, unless they shrink an image, and so start in a fraction of
    the time.

    Args:
        max_side_px: longest side of ``PreparedImage.pixels``; None for stages that run SAM only.
        sam_side_px: long side of SAM's input, in pixels.
        embeddings: folder of SAM's embeddings, which are read instead of making SAM's input.
        resize: True resizes every image to SAM's input size. False only shrinks larger images, so that
            fewer bytes are sent; the encoder's device enlarges the others.
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
        # Absolute, since the process that reads them may have another working directory.
        self.embeddings = embeddings.absolute() if embeddings is not None else None
        self.sam_side_px = sam_side_px

    def __call__(self, chunk: Chunk) -> list[PreparedImage]:
        """Prepare each row of a chunk, in order; for a row that fails, ``error`` gives the reason."""
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
        except Exception as error:  # one image must not stop the others
            if fault_of(error) == "set-up":
                raise
            return PreparedImage(image_id=image_id, error=reason_of(error))

    def prepare(
        self, image_id: str, pixels: NDArray[np.uint8], image_labels: tuple[int, ...] | None
    ) -> PreparedImage:
        """Prepare one decoded image (H, W, 3).

        Raises:
            ValueError: the image is too thin for SAM, or has no stored embedding.
        """
        working = _shrink(pixels, self.max_side_px) if self.max_side_px is not None else None
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
        sam_height, sam_width = _sam_hw((height, width), self.sam_side_px)
        if min(sam_height, sam_width) < 1:
            raise ValueError(f"{width}x{height} pixels are too thin for SAM's input")
        if not self.resize_all and max(height, width) <= self.sam_side_px:
            return {"sam_pixels": pixels} if working is not pixels else {}
        resized = Image.fromarray(pixels).resize((sam_width, sam_height), Image.Resampling.BILINEAR)
        return {"sam_pixels": np.array(resized)}


def _sam_hw(image_hw: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Size of an image in SAM's input, as segment_anything's ResizeLongestSide computes it, without torch."""
    scale = side_px / max(image_hw)
    return int(image_hw[0] * scale + 0.5), int(image_hw[1] * scale + 0.5)


def _shrink(pixels: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    if max(pixels.shape[:2]) <= max_side_px:
        return pixels
    from ray_wsss.ops.resize import shrink

    return shrink(pixels, max_side_px)


def _labels_of(row: dict[str, Any]) -> tuple[int, ...] | None:
    labels = row["image_labels"]
    if labels is None:
        return None
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
    """Pack images into an Arrow array of one list: one row, which is never split on its way to a process."""
    rows: list[dict[str, Any]] = []
    for image in images:
        row = {f.name: getattr(image, f.name) for f in fields(image)}
        rows.append(row | {name: _pack_array(row[name]) for name in _ARRAYS})
    return pa.array([rows], pa.large_list(_IMAGE))


def unpack_images(packed: pa.Array) -> list[PreparedImage]:
    """Images from an array of `pack_images`. Their arrays are views of ``packed``, not copies."""
    rows = packed.flatten()
    columns: dict[str, list[Any]] = {name: _views(rows.field(name)) for name in _ARRAYS}
    for name in (f.name for f in _IMAGE if f.name not in _ARRAYS):
        values = rows.field(name).to_pylist()
        columns[name] = [tuple(value) if isinstance(value, list) else value for value in values]
    return [PreparedImage(**dict(zip(columns, values))) for values in zip(*columns.values())]


def _pack_array(array: NDArray[Any] | None) -> dict[str, Any] | None:
    if array is None:
        return None
    return {"data": np.ascontiguousarray(array).data, "shape": array.shape, "dtype": array.dtype.name}


def _views(packed: pa.StructArray) -> list[NDArray[Any] | None]:
    """NumPy views of a column of packed arrays, made from its buffers because ``as_py`` would copy."""
    data = packed.field("data")
    _, offsets, values = data.buffers()
    starts: NDArray[np.int64] | list[int] = (
        np.frombuffer(offsets, np.int64)[data.offset :] if offsets is not None else []
    )
    shapes, dtypes = packed.field("shape").to_pylist(), packed.field("dtype").to_pylist()
    views: list[NDArray[Any] | None] = []
    for k, valid in enumerate(packed.is_valid().to_pylist()):
        count = math.prod(shapes[k]) if valid else 0
        view = np.frombuffer(values, dtypes[k], count, int(starts[k])) if count else None
        views.append(view.reshape(shapes[k]) if view is not None else None)
    return views
