"""What all measurements of the results page need to know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.demo.scenes import HELD_OUT_SCENES, TRAIN_SCENES


def _demo_recipe() -> Recipe:
    return override(PRESETS["demo"], {"cpm.view": "image"})


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One remake of the page's figures."""

    out: Path
    """Folder with a folder for each measurement."""
    seeds: Sequence[int] = (0, 1, 2)
    data: Path | None = None
    """Folder of genuine photographs: ``coco`` and ``photos_masks_eval``, as docs/lite_sam.md has them."""
    recipe: Recipe = field(default_factory=_demo_recipe)
    """Settings of the demo."""
    photo_recipe: Recipe = field(default_factory=lambda: PRESETS["photos"])
    """Settings for photographs."""
    scenes: tuple[int, int] = (TRAIN_SCENES, HELD_OUT_SCENES)
    """Numbers of the demo's training scenes and of its held-out scenes."""
    tau_space: Path = Path(__file__).parents[2] / "tune_spaces" / "tau.py"
    """Search space of the sweep of tau."""

    def demo(self, seed: int) -> Path:
        """Output of the demo with a seed, which other measurements start from."""
        return self.out / "demo" / f"seed_{seed}"

    def seeded(self, seed: int) -> Recipe:
        """The demo's settings with a seed."""
        return override(self.recipe, {"classifier.seed": seed, "segmenter.seed": seed})


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measurement of the page; its output is the folder of its name in ``Setup.out``."""

    run: Callable[[Setup], None]
    """Measures; running it again resumes it."""
    read: Callable[[Setup], Mapping[str, str]]
    """Tables in Markdown by name, of what ``run`` left."""
    tables: Sequence[str]
    """Names of these tables; the line that says where the figures come from stands below the first."""
    needs: Sequence[str] = ()
    """Measurements that must be done before."""
    needs_data: bool = False
    """Whether it takes ``Setup.data``."""
    command: str | None = None
    """Command that does it alone, as the page shows it; None: jobs/results.py does."""
