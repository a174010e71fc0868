"""The commands that make a data set, one per kind of source."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ray_wsss.commands.flags import ClusterFlags, DecodeFlags
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.resources import Cluster
from ray_wsss.errors import UserError

if TYPE_CHECKING:
    from ray_wsss.data.source import Source


@dataclass(frozen=True, kw_only=True)
class IngestCommand:
    """Flags and steps of all commands that make a data set from people's files."""

    out: Path
    """Folder of the new data set."""
    max_errors: int | None = None
    """Largest number of images that may fail to be read. Without it, ingest fails only if all of them do."""
    classes: Path | None = None
    """File with a class name in each line: names and order of the classes, so that data sets agree."""
    masks: Path | None = None
    """Folder of ground-truth masks: palette or grey PNGs, named like the images."""
    mask_values: tuple[str, ...] = ()
    """Classes by value in masks, such as 0=background 1=cat 9=ignore, or a file with such a line for each
    value. Without it, 0 is background, class c is c + 1 and 255 is ignore, or 65535 above 254 classes."""
    requests_per_host: int = 16
    """Most requests to one host, or bucket, at a time, from the whole cluster; for images named by URI."""
    decode: DecodeFlags = field(default_factory=DecodeConfig)
    cluster: ClusterFlags = field(default_factory=Cluster)

    def _ingest(self, source: "Source") -> None:
        from ray_wsss.cluster.stages.ingest import run_ingest
        from ray_wsss.stages.ingest import describe_ingest

        if self.requests_per_host < 1:
            raise UserError(f"--requests-per-host is {self.requests_per_host}; expected 1 or more")
        source = self._with_classes_and_masks(source)
        for remark in source.remarks:
            print(remark)
        metadata = run_ingest(
            source,
            out=self.out,
            max_errors=self.max_errors,
            cluster=self.cluster,
            decode=self.decode,
            requests_per_host=self.requests_per_host,
        )
        print(describe_ingest(metadata, self.out))

    def _class_names(self) -> list[str] | None:
        """Names in the file --classes; None without it."""
        from ray_wsss.data.sources.classes import read_class_names

        return None if self.classes is None else read_class_names(self.classes)

    def _with_classes_and_masks(self, source: "Source") -> "Source":
        from ray_wsss.data.sources.classes import with_classes
        from ray_wsss.data.sources.masks import read_mask_values, with_masks

        class_names = self._class_names()
        if self.classes is not None and class_names is not None:
            source = with_classes(source, class_names, self.classes)
        values = read_mask_values(self.mask_values, source.class_names) if self.mask_values else None
        if self.masks is not None:
            return with_masks(source, self.masks, values)
        return source if values is None else replace(source, mask_values=values)


@dataclass(frozen=True, kw_only=True)
class IngestCoco(IngestCommand):
    """COCO: a folder of images and an instances JSON (polygons, RLE, crowd regions)."""

    images: Path
    """Folder that the file names in the JSON are relative to."""
    annotations: Path
    """Instances JSON."""
    unannotated: Literal["none", "unknown"] = "none"
    """What an image has that the JSON lists without annotations: none of the classes, or unknown labels."""

    def run(self) -> None:
        from ray_wsss.data.coco import read_coco

        self._ingest(read_coco(self.images, self.annotations, self.unannotated))


@dataclass(frozen=True, kw_only=True)
class IngestVoc(IngestCommand):
    """Pascal VOC: VOCdevkit/VOC2012 or a folder like it."""

    root: Path
    """Folder with JPEGImages, ImageSets, Annotations, SegmentationClass."""
    split: str = "trainval"
    """Image set, such as train, val, trainval."""
    unannotated: Literal["none", "unknown"] = "none"
    """What an image has whose XML has no objects: none of the classes, or unknown unless a mask tells."""

    def run(self) -> None:
        from ray_wsss.data.voc import read_voc

        self._ingest(read_voc(self.root, self.split, self.unannotated))


@dataclass(frozen=True, kw_only=True)
class IngestYolo(IngestCommand):
    """YOLO (Ultralytics): data.yaml with boxes, or polygons, which also become masks."""

    data: Path
    """YAML file with the names of the classes and the folders of the splits."""
    split: str = "train"
    """Split: train, val or test."""
    unannotated: Literal["none", "unknown"] = "none"
    """What an image with an empty label file, or without one, has: none of the classes, or unknown labels."""

    def run(self) -> None:
        from ray_wsss.data.sources.yolo import read_yolo

        self._ingest(read_yolo(self.data, self.split, self.unannotated))


@dataclass(frozen=True, kw_only=True)
class IngestFolder(IngestCommand):
    """A folder with one sub-folder of images per class; an image in several gets several labels."""

    root: Path
    """Folder of the class folders. The labels of images directly in it are unknown."""
    none_folder: str | None = None
    """Name of a folder in --root that is no class: its images have none of the classes."""

    def run(self) -> None:
        from ray_wsss.data.folder import read_folder

        self._ingest(read_folder(self.root, self.none_folder))


@dataclass(frozen=True, kw_only=True)
class IngestCsv(IngestCommand):
    """A table of path,label;label lines, of one-hot columns, or (.txt) of one path or URI a line."""

    table: Path
    """The table. A header is optional; with more than two columns, they are classes (1, 0, -1 or blank)."""
    images: Path | None = None
    """Folder that the paths are relative to. Without it, the folder of the table."""
    none_label: str | None = None
    """Label, or one-hot column, of images that have none of the classes. A blank label means unknown."""
    one_hot: bool = False
    """The columns are classes, even if there are only two columns."""

    def run(self) -> None:
        from ray_wsss.data.csv_labels import read_csv

        self._ingest(
            read_csv(
                self.table, self.images, self._class_names(), none_label=self.none_label, one_hot=self.one_hot
            )
        )
