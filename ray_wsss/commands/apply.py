"""The commands that use what was trained: measure it, or apply it to images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ray_wsss.commands.flags import (
    ClusterFlags,
    DecodeFlags,
    ErrorLimitFlags,
    LabelFolders,
    OutputSettings,
    OutputSettingsFlags,
    ResourcesFlags,
    Settings,
    SettingsFlags,
    all_folders,
)
from ray_wsss.config import EvaluateConfig, LabelConfig, PredictConfig, Recipe
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.export import ModelFormat
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.errors import UserError
from ray_wsss.storage import write_json


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Step 7: measure the mIoU of CAMs, pseudo labels and segmenter on a data set with masks.
    With --against: measure how much labels and their corrections, or two sets of labels, differ."""

    dataset: Path | None = None
    """Data set written by ingest, with masks. With --against it is needed only for labels whose data set has
    moved."""
    classifier: Path | None = None
    """Output of train-classifier, to measure its CAMs."""
    labels: LabelFolders = ()
    """Output of label, to measure the pseudo labels; several are measured as one."""
    against: Path | None = None
    """Data set with masks, such as corrected ones, or output of label, that --labels is compared with: IoU by
    class, changed pixels and changed images. --labels may then be a data set with masks as well."""
    segmenter: Path | None = None
    """Output of train-segmenter, to measure its predictions."""
    json: Path | None = None
    """File for the figures, as JSON."""
    settings: SettingsFlags = field(default_factory=Settings)
    resources: ResourcesFlags = field(default_factory=Resources)
    cluster: ClusterFlags = field(default_factory=Cluster)
    label: LabelConfig = field(default_factory=LabelConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def run(self) -> None:
        from rich.console import Console

        from ray_wsss.figures.metrics_table import metrics_table

        metrics = self._compare(self.against) if self.against is not None else self._measure()
        Console().print(metrics_table(metrics))
        if self.json is not None:
            write_json(metrics, self.json)

    def _compare(self, against: Path) -> dict[str, Any]:
        from ray_wsss.stages.curation.against import compare_masks

        labels = all_folders(self.labels)
        if len(labels) != 1 or self.classifier is not None or self.segmenter is not None:
            raise UserError("--against needs --labels with one folder, and no --classifier or --segmenter")
        return compare_masks(labels[0], against, self.dataset)

    def _measure(self) -> dict[str, Any]:
        from ray_wsss.cluster.stages.evaluate import run_evaluate

        if self.dataset is None:
            raise UserError("evaluate needs --dataset, a data set with masks, or --labels with --against")
        return run_evaluate(
            Recipe(label=self.label, predict=self.predict, evaluate=self.evaluate),
            dataset=self.dataset,
            classifier=self.classifier,
            labels=all_folders(self.labels) or None,
            segmenter=self.segmenter,
            resources=self.resources,
            cluster=self.cluster,
        )


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Step 8: apply the segmenter to a folder of images and write a palette PNG for each."""

    segmenter: Path
    """Output of train-segmenter."""
    images: Path
    """Folder of images; images in its sub-folders count too."""
    out: Path
    """Folder for the masks. The same command adds the masks that are missing in it."""
    overlays: bool = False
    """Also write each image with its classes painted on."""
    decode: DecodeFlags = field(default_factory=DecodeConfig)
    settings: OutputSettingsFlags = field(default_factory=OutputSettings)
    resources: ResourcesFlags = field(default_factory=Resources)
    cluster: ClusterFlags = field(default_factory=Cluster)
    limit: ErrorLimitFlags = field(default_factory=ErrorLimit)
    predict: PredictConfig = field(default_factory=PredictConfig)

    def run(self) -> None:
        from ray_wsss.cluster.stages.predict import run_predict
        from ray_wsss.runs.run_report import describe_predictions

        report = run_predict(
            Recipe(predict=self.predict),
            segmenter=self.segmenter,
            images=self.images,
            out=self.out,
            overlays=self.overlays,
            decode=self.decode,
            resources=self.resources,
            cluster=self.cluster,
            limit=self.limit,
            overwrite=self.settings.overwrite,
        )
        if report.total.errors:
            print(f"{self.out / 'errors.parquet'} lists the images that failed, and why")
        print(f"{describe_predictions(report)}; in {self.out}")


@dataclass(frozen=True, kw_only=True)
class ExportModel:
    """Write the trained segmenter or classifier for other programs: torch.export, ONNX or safetensors.
    The first two take uint8 images [B, H, W, 3] and do all preprocessing. The file is checked first."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Output of train-segmenter or train-classifier, or its folder best."""
    out: Path
    """Folder for model.pt2, model.onnx or model.safetensors, and model.json."""
    format: ModelFormat = "onnx"
    """onnx: for ONNX Runtime and others (pip install -e ".[onnx]"). torch-export: for torch.export.load.
    safetensors: weights under the names of segmentation-models-pytorch or timm, without preprocessing."""
    size: tuple[int, ...] = ()
    """Height and width of the images, in pixels, if the program is to take one size alone. Larger ones than
    predict.max_side_px (a classifier: than in its training) are scaled down inside. Without it images may
    have any size up to that side."""
    settings: OutputSettingsFlags = field(default_factory=OutputSettings)
    predict: PredictConfig = field(default_factory=PredictConfig)

    def run(self) -> None:
        from ray_wsss.export.network.run import export_model

        if len(self.size) not in (0, 2):
            listed = " ".join(map(str, self.size))
            raise UserError(f"--size is {listed}; expected a height and a width, such as 512 512")
        made = export_model(
            self.run_folder,
            self.out,
            self.format,
            size_hw=(self.size[0], self.size[1]) if self.size else None,
            predict=self.predict,
            overwrite=self.settings.overwrite,
        )
        if made.difference is not None:
            print(f"on generated images its results differ from ours by at most {made.difference:.2g}")
        print(f"{made.path} is the network; {self.out / 'model.json'} describes it")
