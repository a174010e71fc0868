"""The commands that make a data set, one per kind of source."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ray_wsss.commands.flags import ClusterFlags
from ray_wsss.config.resources import Cluster

if TYPE_CHECKING:
    from ray_wsss.data.source import Source


@dataclass(frozen=True, kw_only=True)
class _Ingest:
    out: Path
    """Folder of the new data set."""
    max_errors: int | None = None
    """Largest number of images that may fail to be read. Without it, ingest fails only if all of them do."""
    cluster: ClusterFlags = field(default_factory=Cluster)

    def _ingest(self, source: "Source") -> None:
        from ray_wsss.cluster.stages.ingest import run_ingest
        from ray_wsss.stages.ingest import summarise

        for remark in source.remarks:
            print(remark)
        metadata = run_ingest(source, out=self.out, max_errors=self.max_errors, cluster=self.cluster)
        print(summarise(metadata))
        if metadata.errors:
            print(f"{self.out / 'errors.parquet'} lists the images that could not be read, and why")
        if metadata.remarks:
            print(f"{self.out / 'remarks.parquet'} lists the images with remarks")


@dataclass(frozen=True, kw_only=True)
class IngestCoco(_Ingest):
    """COCO: a folder of images and an instances JSON (polygons, RLE, crowd regions)."""

    images: Path
    """Folder that the file names in the JSON are relative to."""
    annotations: Path
    """Instances JSON."""

    def run(self) -> None:
        from ray_wsss.data.coco import read_coco

        self._ingest(read_coco(self.images, self.annotations))


@dataclass(frozen=True, kw_only=True)
class IngestVoc(_Ingest):
    """Pascal VOC: VOCdevkit/VOC2012 or a folder like it."""

    root: Path
    """Folder with JPEGImages, ImageSets, Annotations, SegmentationClass."""
    split: str = "trainval"
    """Image set, such as train, val, trainval."""

    def run(self) -> None:
        from ray_wsss.data.voc import read_voc

        self._ingest(read_voc(self.root, self.split))


@dataclass(frozen=True, kw_only=True)
class IngestFolder(_Ingest):
    """A folder with one sub-folder of images per class; an image in several gets several labels."""

    root: Path
    """Folder of the class folders."""

    def run(self) -> None:
        from ray_wsss.data.folder import read_folder

        self._ingest(read_folder(self.root))


@dataclass(frozen=True, kw_only=True)
class IngestCsv(_Ingest):
    """A CSV table: path,label;label (a header is optional, a blank label means unknown)."""

    table: Path
    """The CSV file."""
    images: Path
    """Folder that the paths are relative to."""

    def run(self) -> None:
        from ray_wsss.data.csv_labels import read_csv

        self._ingest(read_csv(self.table, self.images))
