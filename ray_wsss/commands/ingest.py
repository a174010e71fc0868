"""Commands that make a data set, one per kind of source."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.cluster.pipeline import run_ingest
from ray_wsss.cluster.session import Cluster
from ray_wsss.commands.flags import ClusterFlags
from ray_wsss.data.coco import read_coco
from ray_wsss.data.csv_labels import read_csv
from ray_wsss.data.folder import read_folder
from ray_wsss.data.schema import SourceKind
from ray_wsss.data.voc import read_voc
from ray_wsss.stages.ingest import summarise


@dataclass(frozen=True, kw_only=True)
class _Ingest:
    out: Path
    """Folder of the new data set."""
    max_errors: int | None = None
    """Fail if more images than this can't be read. By default only a total failure fails."""
    cluster: ClusterFlags = field(default_factory=Cluster)


@dataclass(frozen=True, kw_only=True)
class IngestCoco(_Ingest):
    """COCO: a folder of images and an instances JSON (polygons, RLE, crowd regions)."""

    images: Path
    """Folder that the JSON's file names are relative to."""
    annotations: Path
    """Instances JSON."""

    def run(self) -> None:
        _ingest(self, read_coco(self.images, self.annotations), "coco")


@dataclass(frozen=True, kw_only=True)
class IngestVoc(_Ingest):
    """Pascal VOC: VOCdevkit/VOC2012 or a folder like it."""

    root: Path
    """Folder with JPEGImages, ImageSets, Annotations, SegmentationClass."""
    split: str = "trainval"
    """Image set, such as train, val, trainval."""

    def run(self) -> None:
        _ingest(self, read_voc(self.root, self.split), "voc")


@dataclass(frozen=True, kw_only=True)
class IngestFolder(_Ingest):
    """A folder with one sub-folder of images per class; an image in several gets several labels."""

    root: Path
    """Folder of the class folders."""

    def run(self) -> None:
        _ingest(self, read_folder(self.root), "folder")


@dataclass(frozen=True, kw_only=True)
class IngestCsv(_Ingest):
    """A CSV table: path,label;label (a header is optional, an empty label means unlabelled)."""

    table: Path
    """The CSV file."""
    images: Path
    """Folder that the paths are relative to."""

    def run(self) -> None:
        _ingest(self, read_csv(self.table, self.images), "csv")


def _ingest(command: _Ingest, source: tuple[list[str], list], kind: SourceKind) -> None:
    class_names, rows = source
    metadata = run_ingest(
        class_names,
        rows,
        source=kind,
        out=command.out,
        max_errors=command.max_errors,
        cluster=command.cluster,
    )
    print(summarise(metadata))
    if metadata.errors:
        print(f"{command.out / 'errors.parquet'} lists what could not be read, and why")
