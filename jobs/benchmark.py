"""How fast it is, against what: every figure is a comparison within one run.

    python jobs/benchmark.py label --images 2000 --json label.json

Without a data set, scenes are generated and a classifier is trained on them for a minute; both stay in
``--work`` for the next time. The naive loops need scikit-image (``pip install -e ".[test]"``).
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from ray_wsss.benchmark.inputs import make_classifier, make_dataset, make_random_sam
from ray_wsss.benchmark.label import LabelBenchmark
from ray_wsss.config import SamConfig, SamName
from ray_wsss.errors import UserError
from ray_wsss.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Label:
    """Labelling: a naive loop, the batched engine in a bare loop, and the engine on Ray."""

    benchmark: tyro.conf.Positional[Literal["label"]]
    """What to measure."""
    sam: SamName = "tiny"
    """Which SAM."""
    checkpoint: str | None = None
    """Its weights, or 'random', which are as fast."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks run."""
    images: int = 2000
    """Generated scenes."""
    actors: int = os.cpu_count() or 1
    """Actors on Ray, of one CPU each (with cuda: of one GPU); the loops have as many threads."""
    work: Path = Path(tempfile.gettempdir()) / "ray_wsss_benchmark"
    """Folder for inputs and results."""
    json: Path | None = None
    """Also write the figures here."""

    def run(self) -> dict[str, Any]:
        sam = SamConfig(name=self.sam, checkpoint=self.checkpoint)
        if self.checkpoint == "random":
            sam = make_random_sam(self.sam, self.work / f"random_{self.sam}.safetensors")
        recipe = replace(PRESETS["demo"], sam=sam)
        dataset = make_dataset(self.work / f"dataset_{self.images}", self.images)
        classifier = make_classifier(recipe, dataset, self.work / "classifier")
        return LabelBenchmark(
            recipe=recipe,
            dataset=dataset,
            classifier=classifier,
            work=self.work / f"labels_{self.sam}",
            device=self.device,
            actors=1 if self.device == "cuda" else self.actors,
        ).run()


def main() -> int:
    """Run a benchmark and print its figures."""
    command = tyro.cli(Label, prog="benchmark.py", description=__doc__)
    try:
        figures = command.run()
    except UserError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1
    text = json.dumps(figures, indent=2, default=float)
    print(text)
    if command.json is not None:
        command.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
