"""The command that runs every stage in turn."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.commands.flags import (
    ClusterFlags,
    ErrorLimitFlags,
    RecipeFlags,
    SamActors,
    SamActorsFlags,
    Settings,
    SettingsFlags,
    WorkersFlags,
)
from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Workers


@dataclass(frozen=True, kw_only=True)
class RunAll:
    """Run steps 2 to 7 in turn, from a data set to a segmenter and its scores."""

    dataset: Path
    """Data set written by ingest, to train on."""
    out: Path
    """Folder for the folders of all steps. The same command resumes an interrupted run in it."""
    validation: Path | None = None
    """Data set with masks, to measure on during training and at the end."""
    ssc: bool = False
    """Also run segment-everything, which adds SSC to the classifier's loss."""
    settings: SettingsFlags = field(default_factory=Settings)
    actors: SamActorsFlags = field(default_factory=SamActors)
    workers: WorkersFlags = field(default_factory=Workers)
    cluster: ClusterFlags = field(default_factory=Cluster)
    limit: ErrorLimitFlags = field(default_factory=ErrorLimit)
    recipe: RecipeFlags = field(default_factory=Recipe)

    def run(self) -> None:
        from rich.console import Console

        from ray_wsss.cluster.stages.run_all import METRICS, run_all
        from ray_wsss.figures.metrics_table import metrics_table

        metrics = run_all(
            self.recipe,
            dataset=self.dataset,
            out=self.out,
            validation=self.validation,
            ssc=self.ssc,
            resources=self.actors,
            workers=self.workers,
            cluster=self.cluster,
            limit=self.limit,
        )
        if metrics is not None:
            Console().print(metrics_table(metrics))
            print(f"figures in {self.out / METRICS}")
        print(f"labels in {self.out / 'labels'}, segmenter in {self.out / 'segmenter'}")
