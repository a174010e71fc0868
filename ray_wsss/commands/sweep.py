"""The command that sweeps settings."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.commands.flags import (
    ClusterFlags,
    OutputSettings,
    OutputSettingsFlags,
    SweepFlags,
    TrialWorkers,
    TrialWorkersFlags,
)
from ray_wsss.config import ClassifierConfig, CpmConfig, Recipe, SamConfig
from ray_wsss.config.resources import Cluster
from ray_wsss.config.sweep import SweepOptions


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train the classifier with many sets of values, several at a time, and rank them."""

    space: Path
    """Search space: a module such as tune_spaces/demo.py. Its fixed values replace the defaults below."""
    dataset: Path
    """Data set written by ingest; all trials read it."""
    validation: Path
    """Data set with masks, on which trials are compared."""
    out: Path
    """Folder for the sweep. The same command resumes an interrupted sweep in it."""
    segments: Path | None = None
    """Output of segment-everything, for all trials; adds SSC to the loss."""
    embeddings: Path | None = None
    """Output of embed, for all trials, for cpm.view=image."""
    options: SweepFlags = field(default_factory=SweepOptions)
    workers: TrialWorkersFlags = field(default_factory=TrialWorkers)
    settings: OutputSettingsFlags = field(default_factory=OutputSettings)
    cluster: ClusterFlags = field(default_factory=Cluster)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cpm: CpmConfig = field(default_factory=CpmConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def run(self) -> None:
        from rich.console import Console

        from ray_wsss.cluster.tune.run import run_sweep
        from ray_wsss.cluster.tune.space import SECTIONS, load_space
        from ray_wsss.runs.dependencies import with_absolute_paths
        from ray_wsss.sweeps.results import conclude_sweep
        from ray_wsss.sweeps.table import ranking_table

        space = load_space(self.space)
        recipe = with_absolute_paths(Recipe(classifier=self.classifier, cpm=self.cpm, sam=self.sam))
        trials = run_sweep(
            recipe,
            space,
            dataset=self.dataset,
            validation=self.validation,
            out=self.out,
            options=self.options,
            workers=self.workers,
            cluster=self.cluster,
            segments=self.segments,
            embeddings=self.embeddings,
            overwrite=self.settings.overwrite,
        )
        ranking, lines = conclude_sweep(
            trials,
            self.out,
            recipe=recipe,
            preset=self.settings.preset,
            sections=SECTIONS,
            metric=space.metric,
            mode=space.mode,
            log_keys=space.log_keys(),
        )
        Console().print(ranking_table(ranking, space.metric))
        print("\n".join(lines))
