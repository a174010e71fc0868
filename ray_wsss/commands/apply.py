"""Commands that use what was trained: measure it, or apply it to images."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.cluster.evaluate import run_evaluate, save_metrics
from ray_wsss.cluster.map import Resources
from ray_wsss.cluster.predict import describe_predictions, run_predict
from ray_wsss.cluster.session import Cluster
from ray_wsss.commands.flags import ClusterFlags, ConfigFile, PresetName, ResourcesFlags
from ray_wsss.config import EvaluateConfig, LabelConfig, PredictConfig, Recipe
from ray_wsss.report.table import print_metrics


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
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as a sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset."""
    resources: ResourcesFlags = field(default_factory=Resources)
    cluster: ClusterFlags = field(default_factory=Cluster)
    label: LabelConfig = field(default_factory=LabelConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def run(self) -> None:
        metrics = run_evaluate(
            Recipe(label=self.label, predict=self.predict, evaluate=self.evaluate),
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
class Predict:
    """Apply the segmenter to a folder of images: one palette PNG per image, of its size."""

    segmenter: Path
    """Output of train-segmenter."""
    images: Path
    """Folder of images; those in folders below count too."""
    out: Path
    """Folder for the masks; a run in it goes on with the images that have none."""
    overlays: bool = False
    """Also write the images with their classes painted on."""
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as a sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset."""
    overwrite: bool = False
    """Replace what --out holds."""
    resources: ResourcesFlags = field(default_factory=Resources)
    cluster: ClusterFlags = field(default_factory=Cluster)
    predict: PredictConfig = field(default_factory=PredictConfig)

    def run(self) -> None:
        report = run_predict(
            Recipe(predict=self.predict),
            segmenter=self.segmenter,
            images=self.images,
            out=self.out,
            overlays=self.overlays,
            resources=self.resources,
            cluster=self.cluster,
            overwrite=self.overwrite,
        )
        if report.total.errors:
            print(f"{self.out / 'errors.parquet'} lists the images that failed, and why")
        print(f"{describe_predictions(report)}; in {self.out}")
