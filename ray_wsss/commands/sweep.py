"""The command that sweeps settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ray_wsss.cluster.session import Cluster
from ray_wsss.cluster.space import SECTIONS, load_space
from ray_wsss.cluster.sweep import SweepOptions, run_sweep
from ray_wsss.cluster.train import Workers
from ray_wsss.commands.flags import ClusterFlags, ConfigFile, PresetName
from ray_wsss.config import ClassifierConfig, CpmConfig, Recipe, SamConfig
from ray_wsss.report.sweep_table import print_ranking
from ray_wsss.stages.provenance import with_absolute_paths
from ray_wsss.stages.sweep_results import conclude_sweep

OptionsFlags = Annotated[SweepOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train the classifier with many sets of values, several at a time, and rank them."""

    space: Path
    """Search space: a module such as tune_spaces/demo.py. What it fixes are defaults of the flags below."""
    dataset: Path
    """Data set written by ingest; all trials read it."""
    validation: Path
    """Data set with masks, on which trials are compared."""
    out: Path
    """Folder for the sweep; an interrupted one in it goes on."""
    segments: Path | None = None
    """Output of segment-everything, for all trials: adds SSC to the loss."""
    embeddings: Path | None = None
    """Output of embed, for all trials, for cpm.view=image."""
    options: OptionsFlags = field(default_factory=SweepOptions)
    workers_per_trial: int = 1
    """Data-parallel workers of a trial."""
    cpus_per_worker: float = 1
    """CPUs, and so torch threads, of a worker."""
    gpus_per_worker: float = 0
    """GPUs of a worker: 0 or 1."""
    memory_gib_per_worker: float = 1
    """Memory that Ray sets aside for a worker on its node, in GiB; it limits nothing."""
    max_failures: int = 3
    """How often a trial goes on from its last checkpoint after a process or node of it has died."""
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as another sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset, else the space's."""
    overwrite: bool = False
    """Replace what --out holds."""
    cluster: ClusterFlags = field(default_factory=Cluster)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    cpm: CpmConfig = field(default_factory=CpmConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def run(self) -> None:
        space = load_space(self.space)
        recipe = with_absolute_paths(Recipe(classifier=self.classifier, cpm=self.cpm, sam=self.sam))
        trials = run_sweep(
            recipe,
            space,
            dataset=self.dataset,
            validation=self.validation,
            out=self.out,
            options=self.options,
            workers=Workers(
                workers=self.workers_per_trial,
                cpus_per_worker=self.cpus_per_worker,
                gpus_per_worker=self.gpus_per_worker,
                memory_gib_per_worker=self.memory_gib_per_worker,
                max_failures=self.max_failures,
            ),
            cluster=self.cluster,
            segments=self.segments,
            embeddings=self.embeddings,
            overwrite=self.overwrite,
        )
        ranking, lines = conclude_sweep(
            trials,
            self.out,
            recipe=recipe,
            preset=self.preset,
            sections=SECTIONS,
            metric=space.metric,
            mode=space.mode,
            log_keys=space.log_keys(),
        )
        print_ranking(ranking, space.metric)
        print("\n".join(lines))
