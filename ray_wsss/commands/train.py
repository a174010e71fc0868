"""The two commands that train, and the one that computes what the first of them can start from."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from ray_wsss.commands.flags import (
    ClusterFlags,
    ErrorLimitFlags,
    LabelFolders,
    OutputSettings,
    OutputSettingsFlags,
    ResourcesFlags,
    WorkersFlags,
    all_folders,
)
from ray_wsss.config import ClassifierConfig, CpmConfig, FeaturesConfig, Recipe, SamConfig, SegmenterConfig
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExtractFeatures:
    """Optional: run the classifier's backbone once per image and keep its feature maps.

    The backbone is that of the flags of train-classifier, such as --classifier.backbone. The others of its
    flags decide nothing here.
    """

    dataset: Path
    """Data set written by ingest."""
    out: Path
    """Folder for the features. The same command resumes an interrupted run in it."""
    settings: OutputSettingsFlags = field(default_factory=OutputSettings)
    actors: ResourcesFlags = field(default_factory=Resources)
    cluster: ClusterFlags = field(default_factory=Cluster)
    limit: ErrorLimitFlags = field(default_factory=ErrorLimit)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)

    def run(self) -> None:
        from ray_wsss.cluster.stages.extract_features import run_extract_features
        from ray_wsss.runs.run_report import describe_output

        report = run_extract_features(
            Recipe(classifier=self.classifier),
            features=self.features,
            dataset=self.dataset,
            out=self.out,
            resources=self.actors,
            cluster=self.cluster,
            limit=self.limit,
            overwrite=self.settings.overwrite,
        )
        print(describe_output(report, "seen by the backbone", self.out))


@dataclass(frozen=True, kw_only=True)
class TrainClassifier:
    """Step 4: train a classifier on image labels; SAM's masks correct its CAMs (CPM)."""

    dataset: Path
    """Data set written by ingest."""
    out: Path
    """Folder for the classifier; the same command resumes an interrupted run in it."""
    segments: Path | None = None
    """Output of segment-everything; adds SAM-Segment Contrasting (SSC) to the loss."""
    embeddings: Path | None = None
    """Output of embed, for cpm.view=image."""
    features: Path | None = None
    """Output of extract-features, for classifier.freeze-stages all: the backbone is not computed, no image is
    read, and colours don't change."""
    validation: Path | None = None
    """Data set with masks, to measure the CAMs on during training; the best network is kept as well."""
    settings: OutputSettingsFlags = field(default_factory=OutputSettings)
    workers: WorkersFlags = field(default_factory=Workers)
    cluster: ClusterFlags = field(default_factory=Cluster)
    limit: ErrorLimitFlags = field(default_factory=ErrorLimit)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cpm: CpmConfig = field(default_factory=CpmConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def run(self) -> None:
        from ray_wsss.cluster.stages.train_classifier import run_train_classifier

        evaluate = PRESETS[self.settings.preset].evaluate  # for --validation
        run_train_classifier(
            Recipe(classifier=self.classifier, cpm=self.cpm, sam=self.sam, evaluate=evaluate),
            dataset=self.dataset,
            out=self.out,
            workers=self.workers,
            cluster=self.cluster,
            segments=self.segments,
            embeddings=self.embeddings,
            features=self.features,
            validation=self.validation,
            limit=self.limit,
            overwrite=self.settings.overwrite,
        )
        print(f"classifier in {self.out}")


@dataclass(frozen=True, kw_only=True)
class TrainSegmenter:
    """Step 6: train a segmenter on the pseudo labels."""

    dataset: Path
    """Data set written by ingest."""
    labels: LabelFolders
    """Output of label; several, such as those of a data set's slices, are read as one."""
    out: Path
    """Folder for the segmenter; the same command resumes an interrupted run in it."""
    corrections: Path | None = None
    """Data set with masks, such as corrected ones that were ingested again.
    They replace the pseudo labels of the images that have the same id, else file name, else content."""
    review: Path | None = None
    """The review.csv of a report; the pseudo labels that it rejects are left out."""
    validation: Path | None = None
    """Data set with masks, to measure on during training; the best network is kept as well."""
    settings: OutputSettingsFlags = field(default_factory=OutputSettings)
    workers: WorkersFlags = field(default_factory=Workers)
    cluster: ClusterFlags = field(default_factory=Cluster)
    limit: ErrorLimitFlags = field(default_factory=ErrorLimit)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)

    def __post_init__(self) -> None:
        # tyro, which has the flag's absence mean no folder, makes an instance without flags first.
        if self.labels is not tyro.MISSING and not all_folders(self.labels):
            raise UserError("train-segmenter needs --labels, the output of label")

    def run(self) -> None:
        from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter

        run_train_segmenter(
            Recipe(segmenter=self.segmenter),
            dataset=self.dataset,
            labels=all_folders(self.labels),
            out=self.out,
            workers=self.workers,
            cluster=self.cluster,
            corrections=self.corrections,
            review=self.review,
            validation=self.validation,
            limit=self.limit,
            overwrite=self.settings.overwrite,
        )
        print(f"segmenter in {self.out}")
