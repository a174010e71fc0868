"""Data sets of Hugging Face: folders of ``save_to_disk``, and of Parquet files as the Hub has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_wsss.data.source import Source
from ray_wsss.data.sources.cells import load_saved
from ray_wsss.data.sources.containers import MapFiles, map_here
from ray_wsss.data.sources.parquet import Columns, Index, read_parquet, to_source
from ray_wsss.errors import UserError
from ray_wsss.storage import find_files


def read_huggingface(
    root: Path,
    columns: Columns,
    classes: Sequence[str] | None = None,
    *,
    split: str = "train",
    none_label: str | None = None,
    map_files: MapFiles = map_here,
) -> Source:
    """Read the class names and one row per image of a split. Images stay where they are until ingest.

    Args:
        root: folder of ``Dataset.save_to_disk``, of ``DatasetDict.save_to_disk``, or of Parquet files whose
            names begin with that of their split, such as ``data/train-00000-of-00002.parquet``.
        columns: names of the columns of images and labels.
        classes: names of the classes in order, if the data set tells none.
        none_label: label of images that have none of the classes.
        map_files: applies the index to every Parquet file.

    Raises:
        UserError: there is no such split or column, or `datasets` isn't installed.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected a data set of Hugging Face")
    saved = next((path for path in (root / split, root) if (path / "state.json").is_file()), None)
    if saved is not None:
        saved = saved.absolute()
        return to_source(
            [str(saved)], [_index(saved, columns)], columns, classes, None, none_label, "huggingface"
        )
    files = sorted(name for name in find_files(root) if name.endswith(".parquet"))
    of_split = [name for name in files if Path(name).name.startswith(split) or f"{split}/" in f"/{name}"]
    if not of_split:
        known = sorted(path.parent.name for path in root.glob("*/state.json")) or files[:5]
        raise UserError(f"{root} has no split '{split}'; expected one of: {', '.join(known) or '(none)'}")
    paths = [str(root / name) for name in of_split]
    return read_parquet(
        paths, columns, classes, none_label=none_label, kind="huggingface", map_files=map_files
    )


def _index(saved: Path, columns: Columns) -> Index:
    dataset = load_saved(saved)
    for name in (columns.image, columns.label, columns.id):
        if name is not None and name not in dataset.column_names:
            raise UserError(f"{saved} has no column '{name}'; there are {', '.join(dataset.column_names)}")

    def column(name: str | None) -> pa.ChunkedArray | None:
        if name is None:
            return None
        return dataset.select_columns([name]).with_format("arrow")[:][name]

    ids = column(columns.id)
    return Index(
        labels=column(columns.label),
        ids=None if ids is None else ids.cast(pa.string()),
        paths=None,
        group_rows=[1] * len(dataset),  # mapped into memory, so that single rows are read
        class_names=_names(dataset.features[columns.label]) if columns.label is not None else None,
    )


def _names(feature: Any) -> list[str] | None:
    """Class names of a ClassLabel, or of a list of them; None for another feature."""
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return list(feature.names) if hasattr(feature, "names") else None
