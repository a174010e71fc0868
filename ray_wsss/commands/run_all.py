"""The command that runs every stage in turn."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.cluster.map import Resources
from ray_wsss.cluster.run_all import METRICS, run_all
from ray_wsss.cluster.session import Cluster
from ray_wsss.cluster.train import Workers
from ray_wsss.commands.flags import ClusterFlags, ConfigFile, PresetName, RecipeFlags, WorkersFlags
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
    sam_actors: int = 1
    """Actors that run SAM, each with its own networks; evaluation has as many."""
    num_cpus_per_actor: float = 1
    """CPUs, and so torch threads, of an actor."""
    num_gpus_per_actor: float = 0
    """GPUs of an actor; fractions share one."""
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
            resources=Resources(
                actors=self.sam_actors,
                cpus_per_actor=self.num_cpus_per_actor,
                gpus_per_actor=self.num_gpus_per_actor,
            ),
            workers=self.workers,
            cluster=self.cluster,
        )
        if metrics is not None:
            print_metrics(metrics)
            print(f"{self.out / METRICS} has the figures")
        print(f"labels in {self.out / 'labels'}, segmenter in {self.out / 'segmenter'}")
