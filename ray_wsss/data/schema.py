"""A data set on disk, and the source rows it is made from.

DATASET/metadata.json              written last: a data set without it is unfinished
DATASET/shards/part-00000.parquet  images, see ``IMAGE_SCHEMA``
DATASET/errors.parquet             images that could not be read, see ``ERROR_SCHEMA``
DATASET/remarks.parquet            what was left out of good images or read unusually, see ``REMARK_SCHEMA``
"""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_wsss.errors import UserError
from ray_wsss.label_format import MAX_CLASSES
from ray_wsss.storage import is_remote, replace_atomically, write_json

FORMAT_VERSION = 2
"""Format that this version writes. Version 1, which had one value for unknown labels and for none of the
classes, stays readable (`unknown_as_null`)."""
ROWS_PER_GROUP = 64
BYTES_PER_GROUP = 15 * 2**20
"""Most bytes of images, masks and the like in a row group of several rows."""

SourceKind = Literal[
    "coco", "voc", "folder", "csv", "yolo", "label-studio", "webdataset", "parquet", "huggingface"
]

OBJECT = pa.struct(
    [
        pa.field("class_index", pa.int32()),
        # Pixels of the upright image; see `data.objects.AnnotatedObject`.
        # Left, top, right, bottom; null: no box. Earlier versions wrote lists of fixed size, which pyarrow
        # before 26 can't read from Parquet if one is null.
        pa.field("box_xyxy", pa.list_(pa.float32())),
        pa.field("points_xy", pa.list_(pa.list_(pa.float32(), 2))),
        pa.field("point_labels", pa.list_(pa.int8())),  # 1: on the object, 0: beside it
        pa.field("iscrowd", pa.bool_()),  # a region of many objects
    ]
)
IMAGE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # the file, or what `convert_image` makes of it
        pa.field("orientation", pa.int8(), nullable=False),  # EXIF orientation to decode with, 1..8
        pa.field("height", pa.int32(), nullable=False),  # pixels, after orientation
        pa.field("width", pa.int32(), nullable=False),
        # Sorted class indices from 0; empty: none of the classes is in the image; null: nobody knows.
        pa.field("image_labels", pa.list_(pa.int32())),
        pa.field("mask", pa.binary()),  # PNG label map, see `label_format`
        # See `near_duplicates`; null: an image without contrast. Earlier versions wrote no such column.
        pa.field("perceptual_hash", pa.int64()),
        # Null: the source lists no objects. Earlier versions wrote no such column.
        pa.field("objects", pa.list_(OBJECT)),
    ]
)
ERROR_SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "path", "reason")])
REMARK_SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "path", "remark", "detail")])


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One image as its source describes it, before the image itself is read."""

    image_id: str
    path: str
    """Absolute path or URI of the image, or of the file that holds it with others; for a row with an error,
    the path as its source names it."""
    image_labels: tuple[int, ...] | None = None
    """Sorted class indices from 0; empty if the image has none of the classes, None if nobody knows, unless
    a file at ``mask_path`` tells."""
    stated_hw: tuple[int, int] | None = None
    """(height, width) in pixels that the annotations state; None if they state none."""
    mask_path: str | None = None
    """Absolute path or URI of a ground-truth label map in PNG."""
    annotations: list[dict[str, Any]] | None = None
    """Objects (id, class_index, iscrowd, segmentation, bbox); an absent segmentation or bbox is None. They
    show which way round the image is, and make its mask (`data.coco.rasterise`) unless it has a
    ``mask_path``. An empty list is all background; None makes no mask. Objects of YOLO have ``fractions``
    and ``box_fractions`` instead (`data.sources.yolo.in_pixels`), those of Label Studio a ``brush``
    (`data.label_studio.decode_brushes`). ``points``, if present, are (x, y, label) in pixels: label 1 on the
    object, 0 beside it. Boxes and points are kept as prompts for SAM (`data.objects.find_objects`)."""
    byte_range: tuple[int, int] | None = None
    """(offset, size) in bytes of an image inside the file ``path``, such as a tar."""
    cell: tuple[str, int] | None = None
    """(column, row from 0) of an image in the table ``path``: a Parquet file or a folder of `datasets`."""
    error: str | None = None
    """Reason why the image can't be used, if one is known already."""
    remarks: tuple[tuple[str, str], ...] = ()
    """(remark, detail) of what the reader left out, such as ("polygon left out", "annotation 7: 4 numbers").
    Equal remarks are counted together; the details are listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetMetadata:
    """Content of ``metadata.json`` in a finished data set; the counts are numbers of images."""

    class_names: tuple[str, ...]
    source: SourceKind
    images: int
    unlabelled: int
    """Images whose labels are unknown."""
    errors: int
    has_masks: bool
    objects: int = 0
    """Number of annotated objects that can prompt SAM; 0 for a data set of an earlier version."""
    empty: int = 0
    """Images that have none of the classes; 0 for a data set of format version 1, which can't tell."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """Number of rows of ``remarks.parquet`` by remark."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of the source's files that aren't images, by suffix in lower case ("" for no suffix)."""
    duplicates: int = 0
    """Images whose files equal that of another image of the data set."""
    decode: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the images were converted with, as `DecodeConfig.noted` gives them."""
    order_seed: int | None = None
    """Seed of the order of the images; None if they are in the order of the source, as in version 0.1."""

    def save(self, dataset: Path) -> None:
        """Write ``metadata.json`` atomically, in the folder ``dataset``."""
        content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "class_names": list(self.class_names),
            "counts": {name: getattr(self, name) for name in ("images", "unlabelled", "empty", "errors")},
            "source": self.source,
            "has_masks": self.has_masks,
        }
        for name in ("remarks", "passed_over", "decode"):
            if getattr(self, name):
                content[name] = dict(getattr(self, name))
        for name in ("duplicates", "objects"):
            if getattr(self, name):
                content[name] = getattr(self, name)
        if self.order_seed is not None:
            content["order_seed"] = self.order_seed
        write_json(content, dataset / "metadata.json")

    @classmethod
    def load(cls, dataset: Path) -> "DatasetMetadata":
        """Read ``metadata.json``. Raises UserError if it is missing, or this version can't read it."""
        path = dataset / "metadata.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{dataset} is not a finished data set (it has no metadata.json); "
                "expected a folder written by 'ray-wsss ingest'"
            ) from None
        except ValueError as error:
            raise UserError(f"{path} is not readable JSON ({error}); run 'ray-wsss ingest' again") from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if version not in (1, FORMAT_VERSION):
            raise UserError(
                f"{path} has format version {version}; expected 1 or {FORMAT_VERSION}: "
                "run 'ray-wsss ingest' again with this version of ray-wsss"
            )
        try:
            names = ("images", "unlabelled", "errors", *(("empty",) if version > 1 else ()))
            counts = {name: int(content["counts"][name]) for name in names}
            class_names = tuple(content["class_names"])
            return cls(
                class_names=class_names,
                source=content["source"],
                has_masks=content["has_masks"],
                remarks=dict(content.get("remarks", {})),
                passed_over=dict(content.get("passed_over", {})),
                duplicates=int(content.get("duplicates", 0)),
                objects=int(content.get("objects", 0)),
                decode=dict(content.get("decode", {})),
                order_seed=content.get("order_seed"),
                **counts,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} lacks a field ({error!r}); run 'ray-wsss ingest' again") from None


def unknown_as_null(table: pa.Table) -> pa.Table:
    """Rows of any format version as those of version 2, where null stands for unknown image labels.

    In version 1 the column ``image_labels`` couldn't be null, and an empty list stood for unknown labels.
    Parquet keeps whether a column can be null, so that each shard tells its version.
    """
    at = table.schema.get_field_index("image_labels")
    if at < 0 or table.field(at).nullable or not pa.types.is_list(table.field(at).type):
        return table
    field = table.field(at).with_nullable(True)
    labels = [classes or None for classes in table.column(at).to_pylist()]
    return table.set_column(at, field, pa.array(labels, field.type))


def check_class_names(class_names: Sequence[str], origin: Path) -> None:
    """Raise UserError unless there are 1 to ``MAX_CLASSES`` names, none of them empty or repeated."""
    if not 1 <= len(class_names) <= MAX_CLASSES:
        raise UserError(f"{origin} has {len(class_names)} classes; expected 1 to {MAX_CLASSES:,}")
    seen: set[str] = set()
    for name in class_names:
        if not name.strip() or name in seen:
            raise UserError(f"{origin} has an empty or repeated class name ('{name}'); expected unique names")
        seen.add(name)


_LEAVES = "path leaves the folder {}"


def locate(root: Path, name: str) -> tuple[str, str | None]:
    """Absolute path or URI of ``root / name`` and None, or ``name`` and why it can't be used.

    After following symbolic links, the path must lie in ``root``: a data set must not copy files from
    outside its folder. The file may be missing, which shows when it is read.
    """
    if Path(name).is_absolute() or "://" in name:
        return name, f"absolute path; expected a path relative to {root}"
    if is_remote(root):
        inside = not posixpath.normpath(name).startswith("..")
        return (str(root / posixpath.normpath(name)), None) if inside else (name, _LEAVES.format(root))
    try:
        inside = (root / name).resolve().is_relative_to(root.resolve())
    except (ValueError, OSError, RuntimeError) as error:  # a NUL character, a loop of links
        return name, f"not a usable path ({error})"
    return (str((root / name).absolute()), None) if inside else (name, _LEAVES.format(root))


def write_table_atomically(table: pa.Table, path: Path, rows_per_group: int = ROWS_PER_GROUP) -> None:
    """Write a Parquet file atomically: until it is complete, ``path`` is absent or holds the old file.

    Nothing is compressed or dictionary-encoded, because images already are compressed. Small row groups
    keep random access cheap: a group has at most ``rows_per_group`` rows, and at most `BYTES_PER_GROUP`
    unless it is a single row. Every ``rows_per_group`` rows a group ends, so those rows can be read alone.
    """
    with replace_atomically(path) as temporary:
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(temporary, table.schema, **options) as writer:
            for group in cut_into_groups(_bytes_per_row(table), rows_per_group):
                writer.write_table(table.slice(group.start, len(group)), row_group_size=max(1, len(group)))


def cut_into_groups(
    bytes_per_row: Sequence[int], rows_per_group: int, bytes_per_group: int = BYTES_PER_GROUP
) -> Iterator[range]:
    """Rows of each row group of a table; a table without rows has one group without rows.

    A group ends every ``rows_per_group`` rows, and before a row with which it would have more than
    ``bytes_per_group``.
    """
    first, size = 0, 0
    for row, more in enumerate(bytes_per_row):
        if row > first and (row % rows_per_group == 0 or size + more > bytes_per_group):
            yield range(first, row)
            first, size = row, 0
        size += more
    yield range(first, len(bytes_per_row))


def _bytes_per_row(table: pa.Table) -> list[int]:
    """Bytes of each row in the columns of bytes and text; other columns are small."""
    total = np.zeros(len(table), np.int64)
    for column in table.columns:
        if any(is_type(column.type) for is_type in _SIZED):
            total += pc.fill_null(pc.call_function("binary_length", [column]), 0).to_numpy()
    return total.tolist()


_SIZED = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)


def write_errors(failed: Sequence[tuple[str, str]], out: Path, column: str = "image_id") -> None:
    """Write ``out/errors.parquet``, or remove it if no image failed.

    Args:
        failed: (image, reason) of each image that failed.
        column: name of the column that identifies the image.
    """
    path = out / "errors.parquet"
    path.unlink(missing_ok=True)
    if failed:
        schema = pa.schema([(column, pa.string()), ("reason", pa.string())])
        rows = [{column: image, "reason": reason} for image, reason in failed]
        write_table_atomically(pa.Table.from_pylist(rows, schema=schema), path)
