"""Commands that make something: training, labelling, SAM's caches, the demo."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.cluster.chunks import RunReport, describe_run
from ray_wsss.cluster.labelling import run_embed, run_label, run_segment_everything
from ray_wsss.cluster.pipeline import run_train_classifier, run_train_segmenter
from ray_wsss.cluster.session import Cluster
from ray_wsss.cluster.train import Workers
from ray_wsss.commands.flags import (
    ClusterFlags,
    ConfigFile,
    PresetName,
    SamActors,
    SamActorsFlags,
    WorkersFlags,
)
from ray_wsss.config import (
    ClassifierConfig,
    CpmConfig,
    EmbedConfig,
    LabelConfig,
    Recipe,
    SamConfig,
    SegmenterConfig,
    SegmentsConfig,
)
from ray_wsss.demo import run_demo
from ray_wsss.settings_file import load_recipe


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
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as a sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset."""
    overwrite: bool = False
    """Replace what --out holds."""
    workers: WorkersFlags = field(default_factory=Workers)
    cluster: ClusterFlags = field(default_factory=Cluster)
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
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as a sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset."""
    overwrite: bool = False
    """Replace what --out holds."""
    actors: SamActorsFlags = field(default_factory=SamActors)
    cluster: ClusterFlags = field(default_factory=Cluster)
    sam: SamConfig = field(default_factory=SamConfig)

    def _run(self, stage: Callable[..., RunReport], recipe: Recipe, what: str, **inputs: Path | None) -> None:
        report = stage(
            recipe,
            dataset=self.dataset,
            out=self.out,
            resources=self.actors.resources,
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
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as a sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset."""
    overwrite: bool = False
    """Replace what --out holds."""
    workers: WorkersFlags = field(default_factory=Workers)
    cluster: ClusterFlags = field(default_factory=Cluster)
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
class Demo:
    """The whole pipeline on generated scenes, offline: about five minutes on two CPU cores."""

    out: Path = Path("demo")
    """Folder for everything the demo makes; the pictures are in overview.png."""
    seed: int = 0
    """Of scenes, weights and order."""
    config: ConfigFile = None
    """TOML file whose settings replace the demo's, such as a sweep's best.toml."""
    cluster: ClusterFlags = field(default_factory=Cluster)

    def run(self) -> None:
        recipe = load_recipe(self.config, "demo") if self.config is not None else None
        run_demo(self.out, seed=self.seed, cluster=self.cluster, recipe=recipe)
