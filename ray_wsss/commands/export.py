"""Commands that write labels in other tools' forms, one per form."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ray_wsss.commands.flags import FilterFlags
from ray_wsss.config.export import ExportFilter, InstancesBy
from ray_wsss.errors import UserError
from ray_wsss.storage import lies_in

if TYPE_CHECKING:
    from ray_wsss.export.record import ExportFormat
    from ray_wsss.export.source import ExportSource
    from ray_wsss.runs.curation.review import Review


@dataclass(frozen=True, kw_only=True)
class _Export:
    out: Path
    """Folder for the export."""
    labels: Path | None = None
    """Output of label; needs --dataset. Give this or --predictions."""
    dataset: Path | None = None
    """Data set that --labels belong to."""
    predictions: Path | None = None
    """Output of predict; needs --images. Give this or --labels."""
    images: Path | None = None
    """Folder that --predictions were made from, or a data set with the same images."""
    review: Path | None = None
    """The review.csv of a report; images that it rejects are left out."""
    filters: FilterFlags = field(default_factory=ExportFilter)
    skip_images: bool = False
    """Write the labels without the pictures."""
    overwrite: bool = False
    """Replace the content of --out."""
    format_name: ClassVar[str]

    def run(self) -> None:
        from ray_wsss.export.run import run_export

        source = self._source()
        self._check_classes([source.class_names[k] for k in self.filters.keep_classes(source.class_names)])
        review = self._review(source)
        settings, make = self._settings(), self._format()
        # YOLO knows nothing else, and in a folder of masks only --min-area-px depends on it.
        components: InstancesBy = "components"
        report = run_export(
            source,
            lambda out, class_names: make(out, class_names, **settings),
            out=self.out,
            stage=f"export {self.format_name}",
            settings=settings,
            filters=self.filters,
            by=getattr(self, "instances", components),
            review=review,
            overwrite=self.overwrite,
        )
        if report is not None:
            print("\n".join(report.describe(self.filters)))
            if review is not None:
                images = report.images + report.rejected + len(report.errors)
                print(review.describe(report.rejected, images))
            if report.errors:
                print(f"{self.out / 'errors.parquet'} lists the images that failed, and why")
            print(f"in {self.out}")

    def _check_classes(self, class_names: Sequence[str]) -> None:
        """Raise UserError if the format can't hold these classes; called before ``out`` is touched."""

    def _settings(self) -> dict[str, Any]:
        """Arguments of the format, beside folder and class names."""
        return {"skip_images": self.skip_images}

    @staticmethod
    def _format() -> "Callable[..., ExportFormat]":
        raise NotImplementedError

    def _review(self, source: "ExportSource") -> "Review | None":
        from ray_wsss.runs.curation.review import read_review

        where = self.dataset or self.images
        if self.review is None or where is None:
            return None
        return read_review(self.review, set(source.image_ids()), where)

    def _label_source(self, labels: Path, dataset: Path) -> "ExportSource":
        from ray_wsss.export.source import LabelSource

        return LabelSource(labels, dataset)

    def _source(self) -> "ExportSource":
        from ray_wsss.export.source import PredictionSource

        if (self.labels is None) == (self.predictions is None):
            raise UserError("expected either --labels with --dataset, or --predictions with --images")
        if self.labels is not None:
            if self.dataset is None or self.images is not None:
                raise UserError("--labels needs --dataset, the data set that they are of, and no --images")
            source = self._label_source(self.labels, self.dataset)
            inputs = {"--labels": self.labels, "--dataset": self.dataset}
        else:
            assert self.predictions is not None
            if self.images is None or self.dataset is not None:
                raise UserError("--predictions needs --images, a folder or a data set, and no --dataset")
            source = PredictionSource(self.predictions, self.images)
            inputs = {"--predictions": self.predictions, "--images": self.images}
        for flag, folder in inputs.items():
            if lies_in(folder, self.out):
                raise UserError(f"{flag} {folder} lies in --out {self.out}; expected a folder apart from it")
        return source


@dataclass(frozen=True, kw_only=True)
class _SplitExport(_Export):
    split: str = "train"
    """Name of this part of the data, such as train or val."""

    def _settings(self) -> dict[str, Any]:
        if not re.fullmatch(r"\w[\w.-]*", self.split):
            raise UserError(f"--split is {self.split}; expected letters, digits, dots and dashes")
        return super()._settings() | {"split": self.split}


@dataclass(frozen=True, kw_only=True)
class ExportVoc(_SplitExport):
    """Pascal VOC: JPEGImages, SegmentationClass, SegmentationObject, ImageSets, labelmap.txt.
    VOC has room for 254 classes."""

    instances: InstancesBy = "components"
    """Objects: annotated ones if boxes or points prompted SAM, else connected components;
    or all pixels of a class in an image as one."""
    boundary_px: int = 0
    """Width of the band on either side of an outline that becomes 255 (ignore), in pixels, 0 or more."""
    format_name: ClassVar[str] = "voc"

    def _check_classes(self, class_names: Sequence[str]) -> None:
        from ray_wsss.export.voc import check_voc_classes

        check_voc_classes(class_names)

    def _settings(self) -> dict[str, Any]:
        if self.boundary_px < 0:
            raise UserError(f"--boundary-px is {self.boundary_px}; expected 0 or more pixels")
        return super()._settings() | {"boundary_px": self.boundary_px}

    @staticmethod
    def _format() -> "Callable[..., ExportFormat]":
        from ray_wsss.export.voc import VocFormat

        return VocFormat


@dataclass(frozen=True, kw_only=True)
class ExportCoco(_SplitExport):
    """COCO: an instances JSON with masks as RLE, scores and points."""

    instances: InstancesBy = "components"
    """Instances: annotated objects if boxes or points prompted SAM, else connected components;
    or all pixels of a class in an image as one."""
    polygons: bool = False
    """Write polygons instead of RLE; a cut joins each hole to its outline."""
    format_name: ClassVar[str] = "coco"

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"polygons": self.polygons}

    @staticmethod
    def _format() -> "Callable[..., ExportFormat]":
        from ray_wsss.export.coco import CocoFormat

        return CocoFormat


@dataclass(frozen=True, kw_only=True)
class ExportYolo(_SplitExport):
    """YOLO segmentation: a text file of polygons per image, one per object or component, and data.yaml."""

    format_name: ClassVar[str] = "yolo"

    @staticmethod
    def _format() -> "Callable[..., ExportFormat]":
        from ray_wsss.export.yolo import YoloFormat

        return YoloFormat


@dataclass(frozen=True, kw_only=True)
class ExportLabelStudio(_Export):
    """Label Studio: tasks with brush predictions to correct, and the labelling interface for them."""

    instances: InstancesBy = "components"
    """Regions: annotated objects if boxes or points prompted SAM, else connected components;
    or all pixels of a class in an image as one."""
    url_prefix: str = "/data/local-files/?d="
    """Start of an image's address in a task, before images/NAME.jpg.
    The default is for local storage with --out as its root."""
    order: Literal["dataset", "uncertain"] = "dataset"
    """Order of the tasks: that of the data set, or the most doubtful labels first (needs --labels)."""
    compare: tuple[Path, ...] = ()
    """With --order uncertain: outputs of predict, or of label with other prompts, for the same images.
    Labels that differ from them are doubtful."""
    format_name: ClassVar[str] = "label-studio"

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"url_prefix": self.url_prefix}

    def _source(self) -> "ExportSource":
        if self.order == "uncertain" and self.labels is None:
            raise UserError("--order uncertain needs --labels; predictions have no scores")
        if self.compare and self.order != "uncertain":
            raise UserError("--compare needs --order uncertain")
        return super()._source()

    def _label_source(self, labels: Path, dataset: Path) -> "ExportSource":
        from ray_wsss.export.doubtful import DoubtfulFirst

        if self.order == "dataset":
            return super()._label_source(labels, dataset)
        return DoubtfulFirst(labels, dataset, self.compare)

    @staticmethod
    def _format() -> "Callable[..., ExportFormat]":
        from ray_wsss.export.label_studio import LabelStudioFormat

        return LabelStudioFormat


@dataclass(frozen=True, kw_only=True)
class ExportFolder(_Export):
    """A plain folder: masks as palette PNGs (16-bit grey above 254 classes), overlays, classes.json."""

    format_name: ClassVar[str] = "folder"

    @staticmethod
    def _format() -> "Callable[..., ExportFormat]":
        from ray_wsss.export.folder import FolderFormat

        return FolderFormat
