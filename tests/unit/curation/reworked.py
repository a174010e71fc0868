"""Data sets of the same scenes under other names, as another tool hands them back."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_wsss.data.images import decode_image
from ray_wsss.data.reader import shard_paths
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata, write_table_atomically

Change = Callable[[int, dict[str, Any]], dict[str, Any] | None]


def rows_of(dataset: Path) -> list[dict[str, Any]]:
    """All rows of a data set, in order."""
    return [row for path in shard_paths(dataset) for row in pq.read_table(path).to_pylist()]


def rewrite(dataset: Path, out: Path, change: Change, class_names: tuple[str, ...] | None = None) -> Path:
    """A copy of a data set with changed rows, without those for which there is None."""
    rows = [row for k, old in enumerate(rows_of(dataset)) if (row := change(k, old)) is not None]
    table = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    write_table_atomically(table, out / "shards" / "part-00000.parquet")
    metadata = DatasetMetadata.load(dataset)
    has_masks = any(row["mask"] is not None for row in rows)
    names = class_names or metadata.class_names
    replace(metadata, images=len(rows), has_masks=has_masks, class_names=names).save(out)
    return out


def as_jpeg(row: dict[str, Any]) -> bytes:
    """The image of a row as a tool saves it anew."""
    buffer = io.BytesIO()
    Image.fromarray(decode_image(row["image"], row["orientation"])).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
