"""Images of a chunk, decoded on a CPU and sent as one Arrow row to the actor that runs the networks."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_wsss.data.embeddings import open_embeddings
from ray_wsss.data.images import decode_image, probe_image
from ray_wsss.data.objects import AnnotatedObject, read_objects
from ray_wsss.data.schema import OBJECT
from ray_wsss.models.promptable.frame import InputFrame
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
    objects: tuple[AnnotatedObject, ...] | None = None
    """Annotated objects, for stages that are prompted with them; None if the source lists none."""
    pixels: NDArray[np.uint8] | None = None
    """(h, w, 3) RGB, long side at most ``max_side_px``; CAMs and masks have the same size."""
    sam_pixels: NDArray[np.uint8] | None = None
    """(a, b, 3) RGB input of SAM's encoder; None if it takes ``pixels`` or an embedding replaces it."""
    embedding: NDArray[np.float16 | np.int8] | None = None
    """(V,) embedding, as `data.embeddings` stores it; None without stored embeddings."""
    embedding_scale: NDArray[np.float32] | None = None
    """(C,) scale of each channel of an int8 embedding, else None."""
    encoded: bytes | None = None
    """File of an image that is labelled in tiles, else None. The actor decodes it (`decode`), one at a time:
    a chunk of such images, decoded, would not fit into memory."""
    orientation: int = 1
    """EXIF orientation to decode ``encoded`` with."""
    error: str | None = None
    """Reason why the image could not be prepared; None if it could."""

    @property
    def for_sam(self) -> NDArray[np.uint8]:
        """(a, b, 3) RGB input of SAM's encoder, for an image without an embedding."""
        pixels = self.sam_pixels if self.sam_pixels is not None else self.pixels
        assert pixels is not None
        return pixels

    def decode(self) -> NDArray[np.uint8]:
        """Pixels (H, W, 3) of an image that is labelled in tiles. Raises ValueError as `decode_image`."""
        if self.encoded is None:
            assert self.pixels is not None
            return self.pixels
        return decode_image(self.encoded, self.orientation)


class PrepareImages:
    """Decodes the images of a chunk and resizes them to the sizes that the networks take.

    The processes that do only this need no torch, unless they shrink an image, and so start in a fraction of
    the time.

    Args:
        max_side_px: longest side of ``PreparedImage.pixels``; None for stages that run SAM only.
        frame: SAM's input; None for stages without SAM.
        tile_px: side of the tiles in which larger images are labelled; they are neither shrunk nor decoded.
            None: no tiles.
        embeddings: folder of SAM's embeddings, which are read instead of making SAM's input.
        objects: whether the annotated objects of the images are read.
        resize: True resizes every image to SAM's input size. False only shrinks larger images, so that
            fewer bytes are sent; the encoder's device enlarges the others.
    """

    def __init__(
        self,
        *,
        max_side_px: int | None = None,
        frame: InputFrame | None,
        tile_px: int | None = None,
        embeddings: Path | None = None,
        objects: bool = False,
        resize: bool = True,
    ) -> None:
        self.max_side_px, self.tile_px, self.resize_all = max_side_px, tile_px, resize
        # Absolute, since the process that reads them may have another working directory.
        self.embeddings = embeddings.absolute() if embeddings is not None else None
        self.frame = frame
        self.columns = (*IMAGE_COLUMNS, "objects") if objects else IMAGE_COLUMNS

    def __call__(self, chunk: Chunk) -> list[PreparedImage]:
        """Prepare each row of a chunk, in order; for a row that fails, ``error`` gives the reason."""
        return [self._prepare(row) for row in read_chunk(chunk, self.columns).to_pylist()]

    def _prepare(self, row: dict[str, Any]) -> PreparedImage:
        image_id = str(row["image_id"])
        try:
            if row["image"] is None:
                raise ValueError("there is no image in the row")
            if self.tile_px is not None:
                image_hw = upright_hw(row["image"], _orientation_of(row))
                if self._needs_tiles(image_hw):
                    return self._leave_encoded(image_id, row, image_hw)
            pixels = decode_image(row["image"], _orientation_of(row))
            prepared = self.prepare(image_id, pixels, _labels_of(row))
            return replace(prepared, objects=read_objects(row.get("objects")))
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
        image_hw = (pixels.shape[0], pixels.shape[1])
        if self._needs_tiles(image_hw):
            self._check_thickness(image_hw)
            return PreparedImage(
                image_id=image_id, image_hw=image_hw, image_labels=image_labels, pixels=pixels
            )
        working = _shrink(pixels, self.max_side_px) if self.max_side_px is not None else None
        return PreparedImage(
            image_id=image_id,
            image_hw=image_hw,
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
        if self.frame is None:
            return {}
        self._check_thickness((height, width))
        if not self.resize_all and max(height, width) <= self.frame.side_px:
            return {"sam_pixels": pixels} if working is not pixels else {}
        return {"sam_pixels": self.frame.fit(pixels)}

    def _leave_encoded(self, image_id: str, row: dict[str, Any], image_hw: tuple[int, int]) -> PreparedImage:
        self._check_thickness(image_hw)
        return PreparedImage(
            image_id=image_id,
            image_hw=image_hw,
            image_labels=_labels_of(row),
            encoded=row["image"],
            orientation=_orientation_of(row),
        )

    def _check_thickness(self, image_hw: tuple[int, int]) -> None:
        """Raise ValueError if SAM's input, made of the image or of a tile, would have a side of 0 pixels."""
        if self.frame is None:
            return
        most = self.tile_px or max(image_hw)
        height, width = (min(side, most) for side in image_hw)
        if min(self.frame.inner_hw((height, width))) < 1:
            raise ValueError(f"{image_hw[1]}x{image_hw[0]} pixels are too thin for SAM's input")

    def _needs_tiles(self, image_hw: tuple[int, int]) -> bool:
        if self.tile_px is None:
            return False
        from ray_wsss.ops.tiles import needs_tiles

        return needs_tiles(image_hw, self.tile_px)


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


def upright_hw(data: bytes, orientation: int) -> tuple[int, int]:
    """Height and width of an image turned upright, from its header."""
    info = probe_image(data)
    return (info.width, info.height) if orientation >= 5 else (info.height, info.width)


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
        pa.field("objects", pa.list_(OBJECT)),
        pa.field("error", pa.string()),
        pa.field("encoded", pa.large_binary()),
        pa.field("orientation", pa.int8()),
        *[pa.field(name, _ARRAY) for name in _ARRAYS],
    ]
)


def pack_images(images: Sequence[PreparedImage]) -> pa.Array:
    """Pack images into an Arrow array of one list: one row, which is never split on its way to a process."""
    rows: list[dict[str, Any]] = []
    for image in images:
        row = {f.name: getattr(image, f.name) for f in fields(image)}
        row["objects"] = None if image.objects is None else [asdict(each) for each in image.objects]
        rows.append(row | {name: _pack_array(row[name]) for name in _ARRAYS})
    return pa.array([rows], pa.large_list(_IMAGE))


def unpack_images(packed: pa.Array) -> list[PreparedImage]:
    """Images from an array of `pack_images`. Their arrays are views of ``packed``, not copies."""
    rows = packed.flatten()
    columns: dict[str, list[Any]] = {name: _views(rows.field(name)) for name in _ARRAYS}
    for name in (f.name for f in _IMAGE if f.name not in _ARRAYS):
        values = rows.field(name).to_pylist()
        columns[name] = [tuple(value) if isinstance(value, list) else value for value in values]
    columns["objects"] = [read_objects(value) for value in columns["objects"]]
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
