"""The command that runs every stage in turn."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.cluster.run_all import METRICS, run_all
from ray_wsss.cluster.session import Cluster
from ray_wsss.cluster.train import Workers
from ray_wsss.commands.flags import (
    ClusterFlags,
    ConfigFile,
    PresetName,
    RecipeFlags,
    SamActors,
    SamActorsFlags,
    WorkersFlags,
)
from ray_wsss.config import Recipe
from ray_wsss.report.table import print_metrics


@dataclass(frozen=True, kw_only=True)
class RunAll:
    """Run every stage in turn, from a data set to a segmenter and its scores; again resumes."""

    dataset: Path
    """Data set written by ingest, to train on."""
    out: Path
    """Folder for the folders of all stages."""
    validation: Path | None = None
    """Data set with masks, to measure on while training and at the end."""
    ssc: bool = False
    """Also segment everything, which adds SSC to the classifier's loss."""
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as a sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset."""
    actors: SamActorsFlags = field(default_factory=SamActors)
    workers: WorkersFlags = field(default_factory=Workers)
    cluster: ClusterFlags = field(default_factory=Cluster)
    recipe: RecipeFlags = field(default_factory=Recipe)

    def run(self) -> None:
        metrics = run_all(
            self.recipe,
            dataset=self.dataset,
            out=self.out,
            validation=self.validation,
            ssc=self.ssc,
            resources=self.actors.resources,
            workers=self.workers,
            cluster=self.cluster,
        )
        if metrics is not None:
            print_metrics(metrics)
            print(f"{self.out / METRICS} has the figures")
        print(f"labels in {self.out / 'labels'}, segmenter in {self.out / 'segmenter'}")
