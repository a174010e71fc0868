"""The commands that make a data set from files that hold many images each."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_wsss.commands.ingest import IngestCommand

if TYPE_CHECKING:
    from ray_wsss.data.source import Source
    from ray_wsss.data.sources.containers import MapFiles


@dataclass(frozen=True, kw_only=True)
class _IngestContainers(IngestCommand):
    none_label: str | None = None
    """Label of images that have none of the classes."""

    def run(self) -> None:
        from ray_wsss.cluster.connect import ray_session
        from ray_wsss.cluster.stages.index import map_on_ray

        with ray_session(self.cluster.address, verbose=self.cluster.verbose):
            self._ingest(self._read(map_on_ray))

    def _read(self, map_files: "MapFiles") -> "Source":
        """Read the source; ``map_files`` applies a function to each container."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class IngestWebdataset(_IngestContainers):
    """WebDataset: uncompressed tars with files such as 0001.jpg and 0001.cls."""

    tars: tuple[str, ...]
    """Tars, folders of them, or patterns such as 'shards/*.tar'."""
    label_key: str = "cls"
    """Extension of the files of labels, such as cls or txt, or json.FIELD for a field of a JSON file."""
    image_key: str | None = None
    """Extension of the images, if a sample has several."""

    def _read(self, map_files: "MapFiles") -> "Source":
        from ray_wsss.data.sources.webdataset import read_webdataset

        return read_webdataset(
            self.tars,
            self._class_names(),
            label_key=self.label_key,
            image_key=self.image_key,
            none_label=self.none_label,
            map_files=map_files,
        )


@dataclass(frozen=True, kw_only=True)
class _IngestTables(_IngestContainers):
    image_column: str = "image"
    """Column of the images: their bytes, Hugging Face's images, or paths and URIs."""
    label_column: str | None = "label"
    """Column of names or numbers of classes, or of lists of them. None: labels are unknown."""
    id_column: str | None = None
    """Column of the images' names. Without it, the file and the number of the row."""


@dataclass(frozen=True, kw_only=True)
class IngestParquet(_IngestTables):
    """Parquet files with a column of images and one of labels, of any names."""

    files: tuple[str, ...]
    """Parquet files, folders of them, or patterns such as 'data/*.parquet'."""
    images: Path | None = None
    """Folder that paths in the column of images are relative to. Without it, that of each file."""

    def _read(self, map_files: "MapFiles") -> "Source":
        from ray_wsss.data.sources.parquet import Columns, read_parquet

        return read_parquet(
            self.files,
            Columns(image=self.image_column, label=self.label_column, id=self.id_column),
            self._class_names(),
            images=self.images,
            none_label=self.none_label,
            map_files=map_files,
        )


@dataclass(frozen=True, kw_only=True)
class IngestHuggingface(_IngestTables):
    """Hugging Face: a folder of save_to_disk, or of Parquet files as the Hub has them."""

    root: Path
    """Folder of the data set."""
    split: str = "train"
    """Split, such as train, validation, test."""

    def _read(self, map_files: "MapFiles") -> "Source":
        from ray_wsss.data.sources.huggingface import read_huggingface
        from ray_wsss.data.sources.parquet import Columns

        return read_huggingface(
            self.root,
            Columns(image=self.image_column, label=self.label_column, id=self.id_column),
            self._class_names(),
            split=self.split,
            none_label=self.none_label,
            map_files=map_files,
        )
