"""``ray-wsss split``."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.commands.flags import ClusterFlags
from ray_wsss.config.resources import Cluster


@dataclass(frozen=True, kw_only=True)
class Split:
    """Divide a data set, such as into training and validation, with equal shares of each class.

    Equal images stay together.
    """

    dataset: Path
    """Data set to divide; it stays as it is."""
    out: tuple[Path, ...]
    """Folders of the new data sets."""
    fractions: tuple[float, ...] = (0.8, 0.2)
    """Share of the images for each of them; they add up to 1."""
    seed: int = 0
    """Seed of the division. The same seed divides a data set in the same way."""
    cluster: ClusterFlags = field(default_factory=Cluster)

    def run(self) -> None:
        from ray_wsss.cluster.stages.split import run_split
        from ray_wsss.stages.ingest import summarise

        parts = run_split(
            dataset=self.dataset,
            outs=self.out,
            fractions=self.fractions,
            seed=self.seed,
            cluster=self.cluster,
        )
        for out, metadata in zip(self.out, parts):
            print(f"{out}: {summarise(metadata)}")
