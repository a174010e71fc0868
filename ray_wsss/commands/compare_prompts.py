"""The command that compares kinds of prompts."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.commands.flags import ClusterFlags, SamActors, SamActorsFlags, Settings, SettingsFlags
from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.config.resources import Cluster


@dataclass(frozen=True, kw_only=True)
class ComparePrompts:
    """Label with points, boxes and masks as prompts, measure each, and draw the paper's Figure 1.
    Boxes and points that the data set itself has are compared too."""

    dataset: Path
    """Data set written by ingest, with masks."""
    classifier: Path
    """Output of train-classifier; its CAMs make the prompts that the data set doesn't have."""
    out: Path
    """Folder for the labels of each kind, metrics.json and figure.png.
    The same command resumes an interrupted run in it."""
    embeddings: Path | None = None
    """Output of embed, by the same SAM. Without it the command makes its own in --out."""
    images: tuple[str, ...] = ()
    """Ids of the images to draw, instead of the examples."""
    examples: int = 2
    """Examples to draw of each case: one object with several peaks, several objects of a class."""
    settings: SettingsFlags = field(default_factory=Settings)
    actors: SamActorsFlags = field(default_factory=SamActors)
    cluster: ClusterFlags = field(default_factory=Cluster)
    label: LabelConfig = field(default_factory=LabelConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def run(self) -> None:
        from rich.console import Console

        from ray_wsss.cluster.stages.compare_prompts import FIGURE, METRICS, compare_prompts
        from ray_wsss.figures.prompt_table import prompt_table

        metrics = compare_prompts(
            Recipe(label=self.label, sam=self.sam),
            dataset=self.dataset,
            classifier=self.classifier,
            out=self.out,
            resources=self.actors,
            cluster=self.cluster,
            embeddings=self.embeddings,
            images=self.images,
            examples=self.examples,
        )
        Console().print(prompt_table(metrics))
        print(f"figures in {self.out / METRICS}, pictures in {self.out / FIGURE}")
