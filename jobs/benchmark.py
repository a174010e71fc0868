"""How fast it is, against what: every figure is a comparison within one run.

    python jobs/benchmark.py label --images 2000 --json label.json
    python jobs/benchmark.py train --sam vit_b --checkpoint random --batch-size 2 --steps 2
    python jobs/benchmark.py sam --model vit_b --batch-size 2 --images 2
    python jobs/benchmark.py scale --nodes 1 2 4 8 16
    python jobs/benchmark.py project --nodes 1000 --images 100e6

Scenes are generated and a classifier is trained on them for a minute; both stay in ``--work`` for the next
time. The naive ways need scikit-image (``pip install -e ".[test]"``).
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ray_wsss.benchmark.inputs import make_classifier, make_dataset, make_embeddings, make_random_sam
from ray_wsss.benchmark.label import LabelBenchmark
from ray_wsss.benchmark.projection import Deployment, project
from ray_wsss.benchmark.sam import SamBenchmark
from ray_wsss.benchmark.scale import ScaleBenchmark
from ray_wsss.benchmark.train import TrainBenchmark
from ray_wsss.config import Recipe, SamConfig, SamName
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.console import logged_to
from ray_wsss.errors import UserError

WORK = Path(tempfile.gettempdir()) / "ray_wsss_benchmark"
CLASSIFIER_SCENES = 400
"""Scenes that a classifier is trained on where the benchmark itself needs fewer."""


@dataclass(frozen=True, kw_only=True)
class _Benchmark:
    sam: SamName = "tiny"
    """Which SAM."""
    checkpoint: str | None = None
    """Its weights, or 'random', which are as fast."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks run."""
    work: Path = WORK
    """Folder for inputs and results."""
    json: Path | None = None
    """Also write the figures here."""

    def _recipe(self) -> Recipe:
        """The demo's, with the SAM that was asked for, in fp32: the naive ways know no other."""
        sam = SamConfig(name=self.sam, checkpoint=self.checkpoint)
        if self.checkpoint == "random":
            sam = make_random_sam(self.sam, self.work / f"random_{self.sam}.safetensors")
        return replace(PRESETS["demo"], sam=replace(sam, precision="fp32"))

    def _scenes(self, images: int) -> Path:
        return make_dataset(self.work / f"dataset_{images}", images)

    def _classifier(self, recipe: Recipe, dataset: Path) -> Path:
        return make_classifier(recipe, dataset, self.work / "classifier")


@dataclass(frozen=True, kw_only=True)
class Label(_Benchmark):
    """Labelling: a naive loop, the batched engine in a bare loop, and the engine on Ray."""

    images: int = 2000
    """Generated scenes."""
    actors: int = os.cpu_count() or 1
    """Actors on Ray, of one CPU each (with cuda: of one GPU); the loops have as many threads."""

    def run(self) -> dict[str, Any]:
        """The figures of `LabelBenchmark`."""
        recipe, dataset = self._recipe(), self._scenes(self.images)
        return LabelBenchmark(
            recipe=recipe,
            dataset=dataset,
            classifier=self._classifier(recipe, dataset),
            work=self.work / f"labels_{self.sam}",
            device=self.device,
            actors=1 if self.device == "cuda" else self.actors,
        ).run()


@dataclass(frozen=True, kw_only=True)
class Train(_Benchmark):
    """A training step of the classifier: without CPM, CPM on crops, CPM on cached embeddings, naive CPM.

    Seconds of forward pass, CPM, backward pass and optimiser; batches are loaded and decoded before.
    Each way takes a step in turn; medians.
    """

    batch_size: int = PRESETS["demo"].classifier.batch_size
    """Crops per step. There are as many scenes, and SAM embeds them all before."""
    steps: int = 20
    """Steps of each way, after one to warm up."""

    def run(self) -> dict[str, Any]:
        """The figures of `TrainBenchmark`."""
        if self.batch_size < 1 or self.steps < 1:
            raise UserError(
                f"--batch-size is {self.batch_size} and --steps {self.steps}; expected at least 1 of each"
            )
        recipe = self._recipe()
        classifier = self._classifier(recipe, self._scenes(CLASSIFIER_SCENES))
        dataset = self._scenes(self.batch_size)
        embeddings = self.work / f"embeddings_{self.sam}_{self.batch_size}"
        return TrainBenchmark(
            recipe=override(recipe, {"classifier.batch_size": self.batch_size}),
            dataset=dataset,
            classifier=classifier,
            embeddings=make_embeddings(recipe, dataset, embeddings, self.device),
            device=self.device,
            steps=self.steps,
        ).run()


@dataclass(frozen=True, kw_only=True)
class Sam:
    """SAM's image encoder: segment_anything's, one image at a time and in batches, ours, compiled, on Ray."""

    model: SamName = "tiny"
    """Which SAM. The tiny one has its trained weights, the others random ones, which are as fast."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Of ours. segment_anything's is float32."""
    images: int = 32
    """Generated scenes."""
    batch_size: int = 8
    """Images at a time. Of ViT-B, L and H in float32 each takes segment_anything gigabytes."""
    repeats: int = 3
    """Rounds of each way in turn, after a batch to warm up."""
    compile: bool = True
    """Also ours compiled; that itself takes minutes and is not counted."""
    ray: bool = True
    """Also the embed command's work on Ray, with one actor, where Ray is installed."""
    profile: bool = False
    """Also list the operations that take the most time."""
    work: Path = WORK
    """Folder for inputs and results."""
    json: Path | None = None
    """Also write the figures here."""

    def run(self) -> dict[str, Any]:
        """The figures of `SamBenchmark`."""
        if min(self.images, self.batch_size, self.repeats) < 1 or self.images % self.batch_size:
            raise UserError(
                f"--images is {self.images}, --batch-size {self.batch_size} and --repeats {self.repeats}; "
                "expected at least 1 of each, and full batches"
            )
        sam = SamConfig(name="tiny")
        if self.model != "tiny":
            sam = make_random_sam(self.model, self.work / f"random_{self.model}_positions.safetensors")
        sam = replace(sam, precision=self.precision, encode_batch_size=self.batch_size)
        return SamBenchmark(
            recipe=replace(PRESETS["demo"], sam=sam),
            device=self.device,
            images=self.images,
            repeats=self.repeats,
            work=self.work,
            compile=self.compile,
            ray=self.ray,
            profile=self.profile,
        ).run()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Throughput on 1, 2, ... Ray nodes of this machine, with a stage that sleeps instead of computing.

    Their processes need a little of a CPU: on a busy machine let the stage sleep
    longer.
    """

    nodes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of nodes, of one CPU each."""
    seconds: float = 3.0
    """That the stage sleeps for a chunk of 64 images."""
    chunks: int = 12
    """Of each node."""
    work: Path = WORK
    """Folder for inputs and results."""
    json: Path | None = None
    """Also write the figures here."""

    def run(self) -> dict[str, Any]:
        """The figures of `ScaleBenchmark`."""
        return ScaleBenchmark(
            nodes=self.nodes, seconds=self.seconds, chunks=self.chunks, work=self.work / "scale"
        ).run()


@dataclass(frozen=True, kw_only=True)
class Project(Deployment):
    """What a large labelling run would ask of the head node, the object stores and the storage.

    A calculation, which jobs/cluster/SCALE.md explains: nothing is run.
    """

    json: Path | None = None
    """Also write the figures here."""

    def run(self) -> dict[str, Any]:
        """The figures of `project`."""
        return project(self)


_COMMANDS: Any = (
    Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sam, tyro.conf.subcommand("sam")]
    | Annotated[Scale, tyro.conf.subcommand("scale")]
    | Annotated[Project, tyro.conf.subcommand("project")]
)


def main(argv: list[str] | None = None) -> int:
    """Run a benchmark and print its figures."""
    command = tyro.cli(_COMMANDS, prog="benchmark.py", description=__doc__, args=argv)
    try:
        with logged_to(sys.stderr):  # standard output has the figures alone
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
