"""Parquet files of images, with columns of the user's names, and what other tables of images share."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_wsss.data.reader import open_shard
from ray_wsss.data.schema import SourceKind, SourceRow, check_class_names
from ray_wsss.data.source import Source
from ray_wsss.data.sources.containers import MapFiles, find_containers, map_here, short_names
from ray_wsss.data.sources.label_values import Value, name_classes, to_indices, to_values
from ray_wsss.data.sources.locations import Locator
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError, did_you_mean
from ray_wsss.storage import parse_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of a table's columns."""

    image: str = "image"
    """Bytes of images, Hugging Face's images, or paths and URIs."""
    label: str | None = "label"
    """Names or numbers of classes, or lists of them; None: no labels."""
    id: str | None = None
    """Names of the images; None: file and number of the row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What a table says about its images, without the images."""

    labels: pa.ChunkedArray | None
    ids: pa.ChunkedArray | None
    paths: pa.ChunkedArray | None
    """Paths or URIs, if the column of images holds those."""
    group_rows: list[int]
    """Number of rows of each part that is read as a whole."""
    class_names: list[str] | None = None
    """Names of the numbers in ``labels``, if the table tells them."""


def read_parquet(
    files: Sequence[str],
    columns: Columns,
    classes: Sequence[str] | None = None,
    *,
    images: Path | None = None,
    none_label: str | None = None,
    kind: SourceKind = "parquet",
    map_files: MapFiles = map_here,
) -> Source:
    """Read the class names and one row per row of Parquet files. Images stay where they are until ingest.

    Null and -1 are unknown labels, an empty list is none of the classes. Number n is the class n of the names
    that `datasets` wrote into the file, which then are the class names, else of ``classes``.

    Args:
        files: paths, folders or patterns of Parquet files.
        classes: names of the classes in order; None: the labels that occur, sorted.
        images: folder that paths in the column of images are relative to; None: that of each file.
        none_label: label of images that have none of the classes.
        map_files: applies the index to every file.

    Raises:
        UserError: there is no such file or column, or no label and no ``classes``.
    """
    paths = find_containers(files, ".parquet")
    indexes = list(map_files(partial(index_parquet, columns=columns), paths))
    return to_source(paths, indexes, columns, classes, images, none_label, kind)


def index_parquet(path: str, columns: Columns) -> Index:
    """Labels, ids and paths in a Parquet file. Raises UserError if it is damaged or lacks a column."""
    with open_shard(parse_path(path)) as file:
        schema = file.schema_arrow
        for name in (columns.image, columns.label, columns.id):
            if name is not None and name not in schema.names:
                hint = did_you_mean(name, schema.names, f"there are {', '.join(schema.names)}")
                raise UserError(f"{path} has no column '{name}'; {hint}")
        holds_paths = _is_text(schema.field(columns.image).type)
        wanted = [columns.label, columns.id, columns.image if holds_paths else None]
        try:
            table = file.read(columns=[name for name in wanted if name is not None])
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); expected a Parquet file") from None
        footer = file.metadata
    return Index(
        labels=table[columns.label] if columns.label is not None else None,
        ids=table[columns.id].cast(pa.string()) if columns.id is not None else None,
        paths=table[columns.image].cast(pa.string()) if holds_paths else None,
        group_rows=[footer.row_group(group).num_rows for group in range(footer.num_row_groups)],
        class_names=_class_names(schema, columns.label),
    )


def to_source(
    paths: Sequence[str],
    indexes: Sequence[Index],
    columns: Columns,
    classes: Sequence[str] | None,
    images: Path | None,
    none_label: str | None,
    kind: SourceKind,
) -> Source:
    """The source that the indexes of some tables make. Raises UserError as `read_parquet`."""
    own = indexes[0].class_names
    if any(index.class_names != own for index in indexes):
        raise UserError(f"{paths[0]} and other files name other classes; expected the same in all")
    named = list(own or classes or ())
    class_names = named or _occurring(indexes, none_label)
    if not class_names:
        raise UserError(f"{paths[0]} has no label; expected a column of them, or class names (--classes)")
    check_class_names(class_names, parse_path(paths[0]))
    seen: set[int] = set()

    def rows() -> Iterator[SourceRow]:
        for path, name, index in zip(paths, short_names(paths), indexes):
            yield from _rows(path, name, index, columns, class_names, bool(named), images, none_label, seen)

    sizes = [size for index in indexes for size in index.group_rows]
    clumps = np.repeat(np.arange(len(sizes)), sizes) if indexes[0].paths is None else None
    return Source(kind=kind, class_names=class_names, rows=SourceRows.of(rows()), clumps=clumps)


def _rows(
    path: str,
    name: str,
    index: Index,
    columns: Columns,
    class_names: Sequence[str],
    numbered: bool,
    images: Path | None,
    none_label: str | None,
    seen: set[int],
) -> Iterator[SourceRow]:
    locator = Locator(images if images is not None else parse_path(path).parent)
    for row in range(sum(index.group_rows)):
        image_id, error = f"{name}/{row}", None
        if index.ids is not None:
            given = index.ids[row].as_py()
            image_id = given if given is not None else image_id
            error = f"'{image_id}' is the name of two images" if hash(image_id) in seen else None
            seen.add(hash(image_id))
        labels, place = None, path
        try:
            if index.labels is not None:
                values = to_values(index.labels[row].as_py(), none_label)
                labels = to_indices(values, class_names, numbered)
        except ValueError as problem:
            error = error or str(problem)
        cell = (columns.image, row) if index.paths is None else None
        if index.paths is not None:
            place, reason = _locate(locator, index.paths[row].as_py())
            error = error or reason
        yield SourceRow(image_id=image_id, path=place, image_labels=labels, cell=cell, error=error)


def _locate(locator: Locator, name: str | None) -> tuple[str, str | None]:
    return locator.locate(name) if name else ("", "the row has no path of an image")


def _occurring(indexes: Sequence[Index], none_label: str | None) -> list[str]:
    """Names of the classes that occur in the labels."""
    values: set[Value] = set()
    for index in indexes:
        if index.labels is None:
            continue
        labels: Any = index.labels
        while pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):
            labels = labels.combine_chunks().flatten()
        for cell in labels.unique().to_pylist():
            try:
                values |= to_values(cell, none_label) or frozenset()
            except ValueError:  # its rows become error rows
                continue
    return name_classes(values)


def _class_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Names of the label's numbers, as `datasets` writes them into a Parquet file; None without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[label]
        while isinstance(feature, list) or "feature" in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return [str(name) for name in feature["names"]]
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
