"""What all steps of the demo need to know."""

from dataclasses import dataclass
from pathlib import Path

from ray_wsss.config import Recipe
from ray_wsss.data.schema import DatasetMetadata


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """One run of the demo."""

    out: Path
    """Folder of everything that the demo makes; an absolute path."""
    recipe: Recipe
    seed: int

    @property
    def train(self) -> Path:
        """Data set of the images to train on."""
        return self.out / "train"

    @property
    def held_out(self) -> Path:
        """Data set of the images that nothing is trained on."""
        return self.out / "held_out"

    @property
    def has_masks(self) -> bool:
        """Whether the held-out images have ground truth, so that there are scores."""
        return DatasetMetadata.load(self.held_out).has_masks

    @property
    def embeddings(self) -> Path | None:
        """SAM's embeddings of the images to train on; None if CPM encodes every crop instead."""
        return self.out / "embeddings" if self.recipe.cpm.view == "image" else None

    def classifier(self, name: str) -> Path:
        """The classifier "plain" or "cpm"."""
        return self.out / f"classifier_{name}"

    def labels(self, split: str, name: str) -> Path:
        """Pseudo labels of "train" or "held_out", from the CAMs of a classifier."""
        return self.out / f"labels_{split}_{name}"


@dataclass(frozen=True, kw_only=True)
class SceneDemo(DemoSettings):
    """One run of the demo on generated scenes."""

    train_scenes: int
    held_out_scenes: int
