"""The command that compares kinds of prompts."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.cluster.compare_prompts import FIGURE, METRICS, compare_prompts
from ray_wsss.cluster.session import Cluster
from ray_wsss.commands.flags import ClusterFlags, ConfigFile, PresetName, SamActors, SamActorsFlags
from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.report.prompt_table import print_prompt_comparison


@dataclass(frozen=True, kw_only=True)
class ComparePrompts:
    """Points, boxes or masks: label with each kind of prompt, measure, and draw the paper's Figure 1."""

    dataset: Path
    """Data set written by ingest, with masks."""
    classifier: Path
    """Output of train-classifier; its CAMs make all prompts."""
    out: Path
    """Folder for the labels of each kind, metrics.json and figure.png; an interrupted run in it goes on."""
    embeddings: Path | None = None
    """Output of embed, by the same SAM; by default made in --out, so that SAM's encoder runs once."""
    images: tuple[str, ...] = ()
    """Ids of the images to draw, instead of the examples."""
    examples: int = 2
    """How many to draw of each case: one object with several peaks, several objects of a class."""
    config: ConfigFile = None
    """TOML file whose settings replace the preset's, such as a sweep's best.toml."""
    preset: PresetName = "voc"
    """Where the defaults below come from, else the file's preset."""
    actors: SamActorsFlags = field(default_factory=SamActors)
    cluster: ClusterFlags = field(default_factory=Cluster)
    label: LabelConfig = field(default_factory=LabelConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def run(self) -> None:
        metrics = compare_prompts(
            Recipe(label=self.label, sam=self.sam),
            dataset=self.dataset,
            classifier=self.classifier,
            out=self.out,
            resources=self.actors.resources,
            cluster=self.cluster,
            embeddings=self.embeddings,
            images=self.images,
            examples=self.examples,
        )
        print_prompt_comparison(metrics)
        print(f"{self.out / METRICS} has the figures, {self.out / FIGURE} the pictures")
