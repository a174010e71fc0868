"""The commands of ``ray-wsss``, one dataclass each: its fields are the flags, its docstrings the help."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ray_wsss.cluster.chunks import RunReport, describe_run
from ray_wsss.cluster.evaluate import run_evaluate, save_metrics
from ray_wsss.cluster.labelling import run_embed, run_label, run_segment_everything
from ray_wsss.cluster.map import Resources
from ray_wsss.cluster.pipeline import run_ingest, run_train_classifier, run_train_segmenter
from ray_wsss.cluster.session import Cluster
from ray_wsss.cluster.train import Workers
from ray_wsss.config import (
    ClassifierConfig,
    CpmConfig,
    EmbedConfig,
    EvaluateConfig,
    LabelConfig,
    Recipe,
    SamConfig,
    SegmenterConfig,
    SegmentsConfig,
)
from ray_wsss.data.coco import read_coco
from ray_wsss.data.csv_labels import read_csv
from ray_wsss.data.folder import read_folder
from ray_wsss.data.schema import SourceKind
from ray_wsss.data.voc import read_voc
from ray_wsss.demo import run_demo
from ray_wsss.report.table import print_metrics
from ray_wsss.stages.ingest import summarise

PresetName = Literal["voc", "coco", "demo"]
_Cluster = Annotated[Cluster, tyro.conf.arg(name="")]
_Resources = Annotated[Resources, tyro.conf.arg(name="")]
_Workers = Annotated[Workers, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class _Ingest:
    out: Path
    """Folder of the new data set."""
    max_errors: int | None = None
    """Fail if more images than this can't be read. By default only a total failure fails."""
    cluster: _Cluster = field(default_factory=Cluster)


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


@dataclass(frozen=True, kw_only=True)
class TrainClassifier:
    """Train a classifier on image labels, with SAM's masks supervising its CAMs (CPM)."""

    dataset: Path
    """Data set written by ingest."""
    out: Path
    """Folder for the classifier; an interrupted run in it is resumed."""
    segments: Path | None = None
    """Output of segment-everything: adds SAM-Segment Contrasting (SSC) to the loss."""
    embeddings: Path | None = None
    """Output of embed, for cpm.view=image."""
    validation: Path | None = None
    """Data set with masks: mIoU of the CAMs on some of its images meanwhile; the best network is kept too."""
    preset: PresetName = "voc"
    """Where the defaults below come from."""
    overwrite: bool = False
    """Replace what --out holds."""
    workers: _Workers = field(default_factory=Workers)
    cluster: _Cluster = field(default_factory=Cluster)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cpm: CpmConfig = field(default_factory=CpmConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def run(self) -> None:
        recipe = Recipe(classifier=self.classifier, cpm=self.cpm, sam=self.sam)
        run_train_classifier(
            recipe,
            dataset=self.dataset,
            out=self.out,
            workers=self.workers,
            cluster=self.cluster,
            segments=self.segments,
            embeddings=self.embeddings,
            validation=self.validation,
            overwrite=self.overwrite,
        )
        print(f"classifier in {self.out}")


@dataclass(frozen=True, kw_only=True)
class _SamStage:
    """What the stages that run SAM over a data set have in common."""

    dataset: Path
    """Data set written by ingest."""
    out: Path
    """Folder for the result; an interrupted run in it goes on where it was."""
    preset: PresetName = "voc"
    """Where the defaults below come from."""
    overwrite: bool = False
    """Replace what --out holds."""
    sam_actors: int = 1
    """Actors, each with its own networks. Images are decoded beside them, on CPUs that are left."""
    num_cpus_per_actor: float = 1
    """CPUs, and so torch threads, of an actor."""
    num_gpus_per_actor: float = 0
    """GPUs of an actor; fractions share one."""
    cluster: _Cluster = field(default_factory=Cluster)
    sam: SamConfig = field(default_factory=SamConfig)

    def _run(self, stage: Callable[..., RunReport], recipe: Recipe, what: str, **inputs: Path | None) -> None:
        resources = Resources(
            actors=self.sam_actors,
            cpus_per_actor=self.num_cpus_per_actor,
            gpus_per_actor=self.num_gpus_per_actor,
        )
        report = stage(
            recipe,
            dataset=self.dataset,
            out=self.out,
            resources=resources,
            cluster=self.cluster,
            overwrite=self.overwrite,
            **inputs,
        )
        print(f"{describe_run(report, what)}\nin {self.out}")
        if report.total.errors:
            print(f"{self.out / 'errors.parquet'} lists the images that failed, and why")


@dataclass(frozen=True, kw_only=True)
class Embed(_SamStage):
    """Run SAM's image encoder once per image and keep its embeddings for label and training."""

    embed: EmbedConfig = field(default_factory=EmbedConfig)

    def run(self) -> None:
        self._run(run_embed, Recipe(embed=self.embed, sam=self.sam), "embedded")


@dataclass(frozen=True, kw_only=True)
class SegmentEverything(_SamStage):
    """Prompt SAM with a grid of points: one map of all segments per image."""

    embeddings: Path | None = None
    """Output of embed, by the same SAM; spares its image encoder."""
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)

    def run(self) -> None:
        recipe = Recipe(segments=self.segments, sam=self.sam)
        self._run(run_segment_everything, recipe, "segmented", embeddings=self.embeddings)


@dataclass(frozen=True, kw_only=True)
class Label(_SamStage):
    """Make pseudo labels: CAM peaks prompt SAM, its masks become one label map per image."""

    classifier: Path
    """Output of train-classifier."""
    embeddings: Path | None = None
    """Output of embed, by the same SAM; spares its image encoder."""
    label: LabelConfig = field(default_factory=LabelConfig)

    def run(self) -> None:
        recipe = Recipe(label=self.label, sam=self.sam)
        self._run(run_label, recipe, "labelled", classifier=self.classifier, embeddings=self.embeddings)


@dataclass(frozen=True, kw_only=True)
class TrainSegmenter:
    """Train DeepLabV3 on pseudo labels."""

    dataset: Path
    """Data set written by ingest."""
    labels: Path
    """Output of label."""
    out: Path
    """Folder for the segmenter; an interrupted run in it is resumed."""
    validation: Path | None = None
    """Data set with masks: mIoU on some of its images meanwhile; the best network is kept too."""
    preset: PresetName = "voc"
    """Where the defaults below come from."""
    overwrite: bool = False
    """Replace what --out holds."""
    workers: _Workers = field(default_factory=Workers)
    cluster: _Cluster = field(default_factory=Cluster)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)

    def run(self) -> None:
        run_train_segmenter(
            Recipe(segmenter=self.segmenter),
            dataset=self.dataset,
            labels=self.labels,
            out=self.out,
            workers=self.workers,
            cluster=self.cluster,
            validation=self.validation,
            overwrite=self.overwrite,
        )
        print(f"segmenter in {self.out}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """mIoU of CAMs, pseudo labels and segmenter, where the data set has ground truth."""

    dataset: Path
    """Data set written by ingest, with masks."""
    classifier: Path | None = None
    """Output of train-classifier: measures its CAMs."""
    labels: Path | None = None
    """Output of label: measures the pseudo labels."""
    segmenter: Path | None = None
    """Output of train-segmenter."""
    json: Path | None = None
    """Also write the figures here."""
    preset: PresetName = "voc"
    """Where the defaults below come from."""
    resources: _Resources = field(default_factory=Resources)
    cluster: _Cluster = field(default_factory=Cluster)
    label: LabelConfig = field(default_factory=LabelConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def run(self) -> None:
        metrics = run_evaluate(
            Recipe(label=self.label, evaluate=self.evaluate),
            dataset=self.dataset,
            classifier=self.classifier,
            labels=self.labels,
            segmenter=self.segmenter,
            resources=self.resources,
            cluster=self.cluster,
        )
        print_metrics(metrics)
        if self.json is not None:
            save_metrics(metrics, self.json)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole pipeline on generated scenes, offline: about five minutes on two CPU cores."""

    out: Path = Path("demo")
    """Folder for everything the demo makes; the pictures are in overview.png."""
    seed: int = 0
    """Of scenes, weights and order."""
    cluster: _Cluster = field(default_factory=Cluster)

    def run(self) -> None:
        run_demo(self.out, seed=self.seed, cluster=self.cluster)
