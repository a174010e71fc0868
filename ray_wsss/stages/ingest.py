"""Ingest: write the images of a source to Parquet shards; images that fail a check become error rows."""

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.console import tell_progress
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
from ray_wsss.data.learnable import unlearnable
from ray_wsss.data.schema import (
    ERROR_SCHEMA,
    IMAGE_SCHEMA,
    REMARK_SCHEMA,
    DatasetMetadata,
    SourceRow,
    write_table_atomically,
)
from ray_wsss.data.source import Source, describe_passed_over
from ray_wsss.data.sources.contents import REQUESTS_PER_HOST, Contents
from ray_wsss.data.sources.masks import labels_in, to_labels
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.data.sources.yolo import in_pixels
from ray_wsss.errors import UserError
from ray_wsss.label_format import MAX_BYTE_CLASSES, LabelMap, ignore_label
from ray_wsss.storage import make_folder, parse_path, printable, remove_tree, why_unreadable

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 256
"""Images per shard."""
ORDER_SEED = 0
"""Seed of the order that a data set's images are stored in."""


def plan_shards(
    rows: Sequence[SourceRow],
    rows_per_shard: int = ROWS_PER_SHARD,
    seed: int = ORDER_SEED,
    clumps: NDArray[np.integer] | None = None,
) -> Iterator[SourceRows]:
    """Shuffle the rows of a source and cut them into shards; equal arguments give equal shards.

    Sources are often sorted by class. Training reads neighbouring rows together, so they must be as mixed as
    the whole data set. Rows of a clump (`Source.clumps`) stay together, up to the size of a shard, and are
    shuffled within their shard.
    """
    source_rows = SourceRows.of(rows)
    generator = random.Random(seed)
    order = np.arange(len(source_rows))
    if clumps is None:
        shuffled = order.tolist()
        generator.shuffle(shuffled)
        order = np.array(shuffled, np.int64)
    else:
        pieces = _cut(clumps, rows_per_shard)
        generator.shuffle(pieces)
        order = np.concatenate([order[piece] for piece in pieces]) if pieces else order
    for at in range(0, len(order), rows_per_shard):
        shard = order[at : at + rows_per_shard].tolist()
        if clumps is not None:
            generator.shuffle(shard)
        yield source_rows.take(np.array(shard))


def _cut(clumps: NDArray[np.integer], most: int) -> list[slice]:
    """Slices of rows of one clump each, of at most ``most`` rows."""
    starts = np.flatnonzero(np.diff(clumps, prepend=-1)).tolist()
    ends = [*starts[1:], len(clumps)]
    return [
        slice(at, min(at + most, end)) for start, end in zip(starts, ends) for at in range(start, end, most)
    ]


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
    images_with: Mapping[int, int] = field(default_factory=dict)
    """Number of good images by the index of a class that they have."""
    errors: list[tuple[str, str, str]] = field(default_factory=list)
    """(image_id, path, reason) of each image that failed."""
    remarks: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(image_id, path, remark, detail) of what was left out of good images or read in an unusual way."""

    content_hashes: list[int] = field(default_factory=list)
    """64-bit hash of the content of each good image."""

    @classmethod
    def of(
        cls,
        image_labels: Sequence[Sequence[int] | None],
        images: Iterable[bytes],
        *,
        with_mask: int,
        errors: Sequence[tuple[str, str, str]] = (),
        remarks: Sequence[tuple[str, str, str, str]] = (),
    ) -> "ShardSummary":
        """Counts of a shard's rows, from the columns ``image_labels`` and ``image`` of `IMAGE_SCHEMA`."""
        return cls(
            images=len(image_labels),
            unlabelled=sum(labels is None for labels in image_labels),
            empty=sum(labels is not None and not labels for labels in image_labels),
            with_mask=with_mask,
            images_with=dict(Counter(label for labels in image_labels for label in labels or ())),
            errors=list(errors),
            remarks=list(remarks),
            content_hashes=[hash_content(image) for image in images],
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
            images_with=dict(sum((Counter(part.images_with) for part in parts), Counter())),
            errors=[error for part in parts for error in part.errors],
            remarks=[remark for part in parts for remark in part.remarks],
            content_hashes=[content for part in parts for content in part.content_hashes],
        )

    @property
    def duplicates(self) -> int:
        """Number of images whose content another image has too, without one of each."""
        return len(self.content_hashes) - len(set(self.content_hashes))


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
        objects = row.annotations if label_map is None else None
        orientation = orient(probe_image(data), stated_hw, objects or [], remarks)
        pixels = decode_image(data, orientation)
        height, width = pixels.shape[:2]
        if label_map is not None and label_map.shape != (height, width):
            shape = f"{label_map.shape[1]}x{label_map.shape[0]}"
            raise ImageError(f"the mask is {shape} pixels, the image {width}x{height}")
        if label_map is None and objects is not None:
            objects = in_pixels(objects, height, width)
            objects = decode_brushes(objects, height, width, remarks)
            label_map = rasterise(objects, height, width, remarks, self.class_count)
            mask = encode_mask(label_map) if label_map is not None else None
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


def begin_ingest(out: Path) -> None:
    """Prepare the folder ``out``. Shards of an interrupted run are deleted: a smaller rerun would keep some.

    Raises:
        UserError: ``out`` is a finished data set, a file, or holds files that ingest does not write.
    """
    if (out / "metadata.json").exists():
        raise UserError(f"{out} is already a data set; expected a new folder (or delete this one first)")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; expected a folder for the data set")
    foreign = [p.name for p in out.iterdir() if p.name not in _OWN_NAMES] if out.exists() else []
    foreign = [name for name in foreign if not name.endswith(".tmp")]
    if foreign:
        raise UserError(f"{out} holds other files ('{sorted(foreign)[0]}'); expected a new or empty folder")
    remove_tree(out / "shards")
    (out / "remarks.parquet").unlink(missing_ok=True)
    make_folder(out / "shards")


def ingest_here(source: Source, *, out: Path, max_errors: int | None) -> DatasetMetadata:
    """Write a data set in this process; its content is that of `cluster.stages.ingest.run_ingest`.

    Raises:
        UserError: as `begin_ingest` and `finish_ingest`.
    """
    begin_ingest(out)
    shards = list(plan_shards(source.rows, clumps=source.clumps))
    ingest = IngestShard(
        out, len(source.class_names), decode_mask=source.decode_mask, mask_values=source.mask_values
    )
    summaries: list[ShardSummary] = []
    for index, shard in enumerate(shards):
        summaries.append(ingest(shard, index))
        tell_progress(index + 1, len(shards))
    return finish_ingest(out, source, summaries, max_errors, ORDER_SEED)


def finish_ingest(
    out: Path,
    source: Source,
    summaries: Iterable[ShardSummary],
    max_errors: int | None = None,
    order_seed: int | None = None,
    decode: DecodeConfig | None = None,
) -> DatasetMetadata:
    """Write ``errors.parquet``, ``remarks.parquet``, then ``metadata.json``: the data set is complete.

    Warns of classes that no classifier can learn from it.

    Args:
        order_seed: seed that the rows were shuffled with; None if they are in the order of the source.
        decode: settings that the images were converted with, noted unless they are the defaults.

    Raises:
        UserError: the source lists no images, all images failed, or more than ``max_errors`` images did.
            Then errors.parquet is written, but metadata.json is not.
    """
    total = ShardSummary.total(summaries)
    path = out / "errors.parquet"
    _write_rows(total.errors, ERROR_SCHEMA, path)
    if total.remarks:
        _write_rows(total.remarks, REMARK_SCHEMA, out / "remarks.parquet")
    if not total.images and not total.errors:
        raise UserError(f"the {source.kind} source lists no images, so {out} was not made")
    first = f"{total.errors[0][1]}: {total.errors[0][2]}" if total.errors else ""
    count = len(total.errors)
    if not total.images:
        raise UserError(f"all {count} images failed, the first is {first}; {path} lists the reasons")
    if max_errors is not None and count > max_errors:
        raise UserError(
            f"{count} images failed; expected at most {max_errors}. The first is {first}; "
            f"{path} lists the reasons"
        )
    metadata = DatasetMetadata(
        class_names=tuple(source.class_names),
        source=source.kind,
        images=total.images,
        unlabelled=total.unlabelled,
        empty=total.empty,
        errors=count,
        has_masks=total.with_mask > 0,
        remarks=dict(sorted(Counter(remark for _, _, remark, _ in total.remarks).items())),
        passed_over=dict(source.passed_over),
        duplicates=total.duplicates,
        decode=decode.noted() if decode is not None else {},
        order_seed=order_seed,
    )
    metadata.save(out)
    labelled = total.images - total.unlabelled
    for sentence in unlearnable(total.images_with, labelled, source.class_names):
        log.warning(sentence)
    return metadata


def summarise(metadata: DatasetMetadata) -> str:
    """Counts of a data set in a few lines, for the user."""
    lines = [
        f"{metadata.images} images, {metadata.unlabelled} without labels (unknown), "
        f"{metadata.empty} with none of the classes, {metadata.errors} errors"
    ]
    if metadata.duplicates:
        lines.append(f"{metadata.duplicates} duplicates of others: equal files under several names")
    if metadata.passed_over:
        lines.append(f"files passed over, which are no images: {describe_passed_over(metadata.passed_over)}")
    if metadata.remarks:
        counts = (f"{count} x {remark}" for remark, count in metadata.remarks.items())
        lines.append(f"remarks: {'; '.join(counts)}")
    return "\n".join(lines)


_OWN_NAMES = frozenset(("shards", "errors.parquet", "remarks.parquet"))


def hash_content(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), signed=True)


def _name(row: SourceRow) -> tuple[str, str]:
    return printable(row.image_id), printable(row.path)


def _write_rows(rows: Sequence[tuple[str, ...]], schema: pa.Schema, path: Path) -> None:
    columns = {name: [row[k] for row in rows] for k, name in enumerate(schema.names)}
    write_table_atomically(pa.table(columns, schema=schema), path)
