"""The commands that run SAM over a data set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_wsss.commands.flags import (
    ClusterFlags,
    ErrorLimitFlags,
    OutputSettings,
    OutputSettingsFlags,
    SamActors,
    SamActorsFlags,
)
from ray_wsss.config import EmbedConfig, LabelConfig, Recipe, SamConfig, SegmentsConfig
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster
from ray_wsss.config.sam import PromptsFrom

if TYPE_CHECKING:
    from ray_wsss.runs.run_report import RunReport


@dataclass(frozen=True, kw_only=True)
class _SamStage:
    """What these commands have in common."""

    dataset: Path
    """Data set written by ingest."""
    out: Path
    """Folder for the result. The same command resumes an interrupted run in it."""
    settings: OutputSettingsFlags = field(default_factory=OutputSettings)
    actors: SamActorsFlags = field(default_factory=SamActors)
    cluster: ClusterFlags = field(default_factory=Cluster)
    limit: ErrorLimitFlags = field(default_factory=ErrorLimit)
    sam: SamConfig = field(default_factory=SamConfig)

    def _run(self, stage: "Callable[..., RunReport]", recipe: Recipe, what: str, **inputs: Any) -> None:
        from ray_wsss.runs.run_report import describe_output

        report = stage(
            recipe,
            dataset=self.dataset,
            out=self.out,
            resources=self.actors,
            cluster=self.cluster,
            limit=self.limit,
            overwrite=self.settings.overwrite,
            **inputs,
        )
        print(describe_output(report, what, self.out))


@dataclass(frozen=True, kw_only=True)
class Embed(_SamStage):
    """Step 2, optional: run SAM's image encoder once per image and keep its embeddings."""

    embed: EmbedConfig = field(default_factory=EmbedConfig)

    def run(self) -> None:
        from ray_wsss.cluster.stages.embed import run_embed

        self._run(run_embed, Recipe(embed=self.embed, sam=self.sam), "embedded")


@dataclass(frozen=True, kw_only=True)
class SegmentEverything(_SamStage):
    """Step 3, optional: prompt SAM with a grid of points and keep a map of all segments per image."""

    embeddings: Path | None = None
    """Output of embed, by the same SAM; saves running its image encoder again."""
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)

    def run(self) -> None:
        from ray_wsss.cluster.stages.segment_everything import run_segment_everything

        recipe = Recipe(segments=self.segments, sam=self.sam)
        self._run(run_segment_everything, recipe, "segmented", embeddings=self.embeddings)


@dataclass(frozen=True, kw_only=True)
class Label(_SamStage):
    """Step 5: make pseudo labels; peaks of the CAMs prompt SAM, its masks become a label map per image.
    Boxes and points that the data set has can prompt it instead (--prompts-from)."""

    classifier: Path | None = None
    """Output of train-classifier. Not needed with --prompts-from annotations."""
    prompts_from: PromptsFrom = "cams"
    """Origin of SAM's prompts. cams: peaks of the classifier's CAMs, a mask for each class of an image.
    annotations: boxes and points of the data set's objects, a mask for each object.
    both: annotations where an image has objects, CAMs elsewhere."""
    embeddings: Path | None = None
    """Output of embed, by the same SAM; saves running its image encoder again."""
    keep: Path | None = None
    """Data set with masks, such as corrected ones, which become the labels of the images that have the same
    id, else file name, else content. SAM labels the others."""
    slice: str | None = None
    """NUMBER/COUNT: label one of so many equal parts of the data set, such as 2/8, the second of eight.
    train-segmenter and evaluate read the parts' outputs together (--labels A B)."""
    label: LabelConfig = field(default_factory=LabelConfig)

    def run(self) -> None:
        from ray_wsss.cluster.stages.label import run_label
        from ray_wsss.runs.read_chunks import Slice

        part = Slice.parse(self.slice) if self.slice is not None else None
        recipe = Recipe(label=self.label, sam=self.sam)
        inputs = {"classifier": self.classifier, "embeddings": self.embeddings, "keep": self.keep}
        self._run(run_label, recipe, "labelled", prompts_from=self.prompts_from, part=part, **inputs)
