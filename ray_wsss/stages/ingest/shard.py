"""A shard of a data set: reads, checks and writes its images; those that fail a check are listed."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.coco import orient, rasterise
from ray_wsss.data.image_files.convert import convert_image
from ray_wsss.data.image_files.near_duplicates import perceptual_hash
from ray_wsss.data.images import (
    ImageError,
    decode_image,
    decode_mask,
    decode_mask_values,
    encode_mask,
    probe_image,
)
from ray_wsss.data.label_studio import decode_brushes
from ray_wsss.data.objects import AnnotatedObject, find_objects
from ray_wsss.data.schema import (
    IMAGE_SCHEMA,
    SourceRow,
    write_table_atomically,
)
from ray_wsss.data.sources.contents import REQUESTS_PER_HOST, Contents
from ray_wsss.data.sources.masks import labels_in, to_labels
from ray_wsss.data.sources.yolo import in_pixels
from ray_wsss.label_format import MAX_BYTE_CLASSES, LabelMap, ignore_label
from ray_wsss.storage import parse_path, printable, why_unreadable


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSummary:
    """Counts of one shard, or of several shards added up."""

    images: int = 0
    """Good images, whether or not their labels are known."""
    unlabelled: int = 0
    """Good images whose labels are unknown."""
    empty: int = 0
    """Good images that have none of the classes."""
    with_mask: int = 0
    """Good images with a ground-truth mask."""
    objects: int = 0
    """Annotated objects in good images that can prompt SAM."""
    images_with: Mapping[int, int] = field(default_factory=dict)
    """Number of good images by the index of a class that they have."""
    errors: list[tuple[str, str, str]] = field(default_factory=list)
    """(image_id, path, reason) of each image that failed."""
    remarks: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(image_id, path, remark, detail) of what was left out of good images or read in an unusual way."""

    content_hashes: Sequence[int] = field(default_factory=lambda: array("q"))
    """64-bit hash of the content of each good image; in an array, they take 8 bytes each."""

    @classmethod
    def of(
        cls,
        image_labels: Sequence[Sequence[int] | None],
        images: Iterable[bytes],
        *,
        with_mask: int,
        objects: Iterable[Sequence[Mapping[str, Any]] | None] = (),
        errors: Sequence[tuple[str, str, str]] = (),
        remarks: Sequence[tuple[str, str, str, str]] = (),
    ) -> "ShardSummary":
        """Counts of a shard's rows, from the columns ``image_labels``, ``image`` and ``objects`` of
        `IMAGE_SCHEMA`."""
        return cls(
            images=len(image_labels),
            unlabelled=sum(labels is None for labels in image_labels),
            empty=sum(labels is not None and not labels for labels in image_labels),
            with_mask=with_mask,
            objects=sum(not found["iscrowd"] for of_image in objects for found in of_image or ()),
            images_with=dict(Counter(label for labels in image_labels for label in labels or ())),
            errors=list(errors),
            remarks=list(remarks),
            content_hashes=array("q", map(_hash_content, images)),
        )

    @classmethod
    def total(cls, summaries: Iterable["ShardSummary"]) -> "ShardSummary":
        """Counts and lists of all shards."""
        parts = list(summaries)
        return cls(
            images=sum(part.images for part in parts),
            unlabelled=sum(part.unlabelled for part in parts),
            empty=sum(part.empty for part in parts),
            with_mask=sum(part.with_mask for part in parts),
            objects=sum(part.objects for part in parts),
            images_with=dict(sum((Counter(part.images_with) for part in parts), Counter())),
            errors=[error for part in parts for error in part.errors],
            remarks=[remark for part in parts for remark in part.remarks],
            content_hashes=array("q", chain.from_iterable(part.content_hashes for part in parts)),
        )

    @property
    def duplicates(self) -> int:
        """Number of images whose content another image has too, without one of each."""
        return len(self.content_hashes) - len(np.unique(np.asarray(self.content_hashes, np.int64)))


class IngestShard:
    """Reads, verifies and writes the images of one shard.

    Args:
        out: folder of the data set.
        class_count: number of classes; masks may hold the labels 0 to ``class_count``, and that of ignored
            pixels (`label_format`).
        decode: how images of more than 8 bits or of many channels become RGB; by default `DecodeConfig`.
        decode_mask: as `data.source.Source` has it.
        mask_values: label by value of masks; None: they hold labels.
        requests_per_host: most requests of a shard to one host at a time.
    """

    def __init__(
        self,
        out: Path,
        class_count: int = MAX_BYTE_CLASSES,
        decode: DecodeConfig | None = None,
        *,
        decode_mask: Callable[[bytes], LabelMap] | None = None,
        mask_values: Mapping[int, int] | None = None,
        requests_per_host: int = REQUESTS_PER_HOST,
    ) -> None:
        self.out = out
        self.class_count = class_count
        self.decode = decode or DecodeConfig()
        self.decode_mask = decode_mask
        self.mask_values = mask_values
        self.requests_per_host = requests_per_host

    def __call__(self, rows: Sequence[SourceRow], shard_index: int) -> ShardSummary:
        """Write ``shards/part-XXXXX.parquet``, or no file if no row is good."""
        good: list[dict[str, Any]] = []
        errors: list[tuple[str, str, str]] = []
        remarks: list[tuple[str, str, str, str]] = []
        with Contents(rows, self.requests_per_host) as contents:
            for row in rows:
                try:
                    image, found = self._read(row, contents)
                    good.append(image)
                    remarks += [(*_name(row), remark, printable(detail)) for remark, detail in found]
                except OSError as error:
                    errors.append((*_name(row), printable(why_unreadable(error, row.path))))
                except ValueError as error:
                    errors.append((*_name(row), printable(str(error))))
        if good:
            table = pa.Table.from_pylist(good, schema=IMAGE_SCHEMA)
            write_table_atomically(table, part_path(self.out, shard_index))
        return ShardSummary.of(
            [row["image_labels"] for row in good],
            (row["image"] for row in good),
            with_mask=sum(row["mask"] is not None for row in good),
            objects=(row["objects"] for row in good),
            errors=errors,
            remarks=remarks,
        )

    def _read(self, row: SourceRow, contents: Contents) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Make a row of ``IMAGE_SCHEMA``, and list its remarks: those of the reader, and those found here.

        Raises:
            OSError, ValueError: the image can't be used; the message is the reason to report.
        """
        if row.error is not None:
            raise ValueError(row.error)
        remarks = list(row.remarks)
        converted = convert_image(contents.read(row), self.decode)
        data = converted.data
        remarks += converted.remarks
        mask, label_map = self._read_mask(row.mask_path) if row.mask_path is not None else (None, None)
        # If the source states no size, the mask does: it was drawn on the image in one orientation.
        stated_hw = row.stated_hw or (label_map.shape if label_map is not None else None)
        # A mask shows the orientation by its size, annotations by where they are.
        told = row.annotations if label_map is None else None
        orientation = orient(probe_image(data), stated_hw, told or [], remarks)
        pixels = decode_image(data, orientation)
        height, width = pixels.shape[:2]
        if label_map is not None and label_map.shape != (height, width):
            shape = f"{label_map.shape[1]}x{label_map.shape[0]}"
            raise ImageError(f"the mask is {shape} pixels, the image {width}x{height}")
        objects: list[AnnotatedObject] | None = None
        if row.annotations is not None:
            annotations = in_pixels(row.annotations, height, width, paint=label_map is None)
            if label_map is None:
                annotations = decode_brushes(annotations, height, width, remarks)
                label_map = rasterise(annotations, height, width, remarks, self.class_count)
                mask = encode_mask(label_map) if label_map is not None else None
            objects = find_objects(annotations, height, width, remarks)
        image_labels = row.image_labels
        if image_labels is None and label_map is not None:
            image_labels = labels_in(label_map)
        image = {
            "image_id": printable(row.image_id),
            "image": data,
            "orientation": orientation,
            "height": height,
            "width": width,
            "image_labels": sorted(image_labels) if image_labels is not None else None,
            "mask": mask,
            "perceptual_hash": perceptual_hash(pixels),
            "objects": [asdict(found) for found in objects] if objects is not None else None,
        }
        return image, remarks

    def _read_mask(self, path: str) -> tuple[bytes, LabelMap]:
        """The PNG to store for a ground-truth mask, the file itself if it serves, and its label map."""
        png = parse_path(path).read_bytes()
        try:
            if self.decode_mask is not None:
                label_map = self.decode_mask(png)
            elif self.mask_values is not None:
                label_map = decode_mask_values(png)
            else:
                label_map = decode_mask(png, self.class_count)
        except ImageError as error:
            raise ImageError(f"ground-truth mask: {error}") from error
        if self.mask_values is not None:
            label_map = to_labels(label_map, self.mask_values, self.class_count)
        ignore = ignore_label(label_map)
        strange = label_map[(label_map > self.class_count) & (label_map != ignore)]
        if strange.size:
            expected = f"0 to {self.class_count}, or {ignore}"
            raise ImageError(f"the mask holds label {strange[0]}; expected {expected}")
        serves = self.decode_mask is self.mask_values is None or _is_label_map(
            png, label_map, self.class_count
        )
        return (png if serves else encode_mask(label_map)), label_map


def _is_label_map(png: bytes, label_map: LabelMap, class_count: int) -> bool:
    try:
        return np.array_equal(decode_mask(png, class_count), label_map)
    except ImageError:
        return False


def part_path(out: Path, shard_index: int) -> Path:
    """Path of a shard of the data set ``out``."""
    return out / "shards" / f"part-{shard_index:05d}.parquet"


def _hash_content(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), signed=True)


def _name(row: SourceRow) -> tuple[str, str]:
    return printable(row.image_id), printable(row.path)
