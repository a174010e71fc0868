"""Benchmarks of speed; each one compares several ways to do the same work within one run.

    python jobs/benchmark.py label --images 2000 --json label.json
    python jobs/benchmark.py objects --images 1000 --boxes 8
    python jobs/benchmark.py train --sam vit_b --checkpoint random --batch-size 2 --steps 2
    python jobs/benchmark.py frozen --dataset data/photos --backbone tf_efficientnet_lite0
    python jobs/benchmark.py sam --model vit_b --batch-size 2 --images 2
    python jobs/benchmark.py sam --model sam2.1_tiny --batch-size 2 --images 2
    python jobs/benchmark.py scale --nodes 1 2 4 8 16
    python jobs/benchmark.py project --nodes 1000 --images 100e6

Scenes are generated, and a classifier is trained on them for a minute; both stay in ``--work`` for the next
run. The naive ways need scikit-image (``pip install -e ".[test]"``).
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ray_wsss.benchmark.frozen import FrozenBenchmark
from ray_wsss.benchmark.inputs import make_classifier, make_dataset, make_embeddings, make_random_sam
from ray_wsss.benchmark.label import LabelBenchmark
from ray_wsss.benchmark.objects import ObjectBenchmark
from ray_wsss.benchmark.predictor import PredictorBenchmark
from ray_wsss.benchmark.projection import Deployment, project
from ray_wsss.benchmark.sam import SamBenchmark
from ray_wsss.benchmark.scale import ScaleBenchmark
from ray_wsss.benchmark.train import TrainBenchmark
from ray_wsss.commands.flags import PARSERS
from ray_wsss.config import FeaturesConfig, Recipe, SamConfig, SamName
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.promptable import MODELS
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.console import logged_to
from ray_wsss.errors import UserError

WORK = Path(tempfile.gettempdir()) / "ray_wsss_benchmark"
CLASSIFIER_SCENES = 400
"""Scenes that the classifier is trained on if the benchmark itself needs fewer."""


@dataclass(frozen=True, kw_only=True)
class _Benchmark:
    sam: Literal["tiny", "vit_b", "vit_l", "vit_h"] = "tiny"
    """Model of SAM; tiny ships with the package, the others are Meta's."""
    checkpoint: str | None = None
    """Path of SAM's weights, or 'random' for random ones, which run as fast.
    Without it, tiny has its own weights; for the others Meta's file is downloaded."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device on which the networks run."""
    work: Path = WORK
    """Folder for inputs and results."""
    json: Path | None = None
    """File to which the figures are also written, as JSON."""

    def _recipe(self) -> Recipe:
        """The demo's recipe with the chosen SAM in fp32, the only precision that the naive ways have."""
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
    """Number of generated scenes."""
    actors: int = os.cpu_count() or 1
    """Number of actors on Ray, each with one CPU; with --device cuda one actor with one GPU.
    The loops use at least as many threads."""

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

    Measures the seconds of forward pass, CPM, backward pass and optimiser, without loading and decoding.
    The ways take turns, one step each; the figures are medians.
    """

    batch_size: int = PRESETS["demo"].classifier.batch_size
    """Crops per step, at least 1. As many scenes are generated, and SAM embeds all of them before."""
    steps: int = 20
    """Measured steps of each way, at least 1, after one step to warm up."""

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
class Frozen:
    """A training step with the classifier's backbone trained, frozen, or replaced by stored features.

    Measures CPU time on one thread, with loading and decoding and without CPM, and memory.
    """

    dataset: Path
    """Data set written by ingest."""
    backbone: str = PRESETS["photos"].classifier.backbone
    """Backbone, with its pretrained weights."""
    output_stride: Literal[4, 8, 14, 16, 32] = PRESETS["photos"].classifier.output_stride
    """Pixels per cell."""
    steps: int = 10
    """Measured steps of each way, at least 1, after one step to warm up."""
    work: Path = WORK
    """Folder for the features."""
    json: Path | None = None
    """File to which the figures are also written, as JSON."""

    def run(self) -> dict[str, Any]:
        """The figures of `FrozenBenchmark`."""
        from ray_wsss.cluster.stages.extract_features import run_extract_features

        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; expected at least 1")
        changes = {"classifier.backbone": self.backbone, "classifier.output_stride": self.output_stride}
        recipe = override(PRESETS["photos"], changes)
        features = self.work / f"features_{self.backbone}_{self.output_stride}"
        run_extract_features(
            recipe,
            features=FeaturesConfig(),
            dataset=self.dataset,
            out=features,
            resources=Resources(actors=0),
            cluster=Cluster(),
        )
        return FrozenBenchmark(recipe=recipe, dataset=self.dataset, features=features, steps=self.steps).run()


@dataclass(frozen=True, kw_only=True)
class Objects(_Benchmark):
    """Annotated boxes: one box per decoder call, and the engine's batches of many images."""

    images: int = 1000
    """Number of generated scenes, at least 1."""
    boxes: int = 8
    """Boxes in each scene, at least 1."""

    def run(self) -> dict[str, Any]:
        """The figures of `ObjectBenchmark`."""
        if self.images < 1 or self.boxes < 1:
            raise UserError(
                f"--images is {self.images} and --boxes {self.boxes}; expected at least 1 of each"
            )
        return ObjectBenchmark(
            recipe=self._recipe(), images=self.images, boxes=self.boxes, device=self.device
        ).run()


@dataclass(frozen=True, kw_only=True)
class Sam:
    """Models that are prompted, ours against the models' own code.

    tiny and vit_*: the image encoder; segment_anything's image by image and in batches, ours, compiled, on
    Ray.
    Others: a point in each image; the model's own predictor (for lite ours) image by image, and ours in
    batches.
    """

    model: SamName = "tiny"
    """Model. tiny and lite have their trained weights, the others random ones, which run as fast."""
    checkpoint: str | None = None
    """Path of other weights, for models other than tiny and vit_*."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device on which the encoder runs."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Precision of our encoder; segment_anything's runs in float32.
    auto: bf16 on GPUs and on CPUs with AVX512-BF16 or AMX, else fp32."""
    images: int = 32
    """Number of generated scenes, a multiple of --batch-size."""
    batch_size: int = 8
    """Images per batch, at least 1.
    With ViT-B, L and H in float32, segment_anything takes gigabytes of memory per image."""
    repeats: int = 3
    """Number of rounds, at least 1, after a batch to warm up. Every way encodes all images in each round."""
    compile: bool = True
    """Also measure our encoder compiled; compiling takes minutes and is not counted."""
    ray: bool = True
    """Also measure the embed command on Ray, with one actor, if Ray is installed."""
    profile: bool = False
    """Also list the 12 operations that take the most time."""
    work: Path = WORK
    """Folder for inputs and results."""
    json: Path | None = None
    """File to which the figures are also written, as JSON."""

    def run(self) -> dict[str, Any]:
        """The figures of `SamBenchmark`."""
        if min(self.images, self.batch_size, self.repeats) < 1 or self.images % self.batch_size:
            raise UserError(
                f"--images is {self.images}, --batch-size {self.batch_size} and --repeats {self.repeats}; "
                "expected at least 1 of each, and --images a multiple of --batch-size"
            )
        if MODELS[self.model].hub_id is not None or self.model in ("mobile_sam", "lite"):
            return self._against_predictor()
        if self.checkpoint is not None:
            raise UserError(f"--checkpoint is {self.checkpoint}; expected none with --model {self.model}")
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

    def _against_predictor(self) -> dict[str, Any]:
        precision = "fp32" if self.precision == "auto" else self.precision  # as the models' own predictors
        sam = SamConfig(name=self.model, checkpoint=self.checkpoint, precision=precision)
        return PredictorBenchmark(
            sam=replace(sam, encode_batch_size=self.batch_size),
            device=self.device,
            images=self.images,
            repeats=self.repeats,
            work=self.work,
        ).run()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Throughput on 1, 2, ... Ray nodes of this machine, with a stage that sleeps instead of computing.

    The processes of the nodes need some CPU time: on a busy machine raise --seconds.
    """

    nodes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of nodes to measure, each at least 1; a node has one CPU for each of its actors."""
    seconds: float = 3.0
    """Seconds that the stage sleeps per chunk of 64 images; more than 0."""
    chunks: int = 12
    """Chunks per actor, at least 4."""
    actors_per_node: int = 1
    """Actors per node, at least 1."""
    work: Path = WORK
    """Folder for inputs and results."""
    json: Path | None = None
    """File to which the figures are also written, as JSON."""

    def run(self) -> dict[str, Any]:
        """The figures of `ScaleBenchmark`."""
        return ScaleBenchmark(
            nodes=self.nodes,
            seconds=self.seconds,
            chunks=self.chunks,
            actors_per_node=self.actors_per_node,
            work=self.work / "scale",
        ).run()


@dataclass(frozen=True, kw_only=True)
class Project(Deployment):
    """Load of a large labelling run on the head node, the object stores and the storage.

    It only calculates and runs nothing; docs/scale.md explains the figures.
    """

    json: Path | None = None
    """File to which the figures are also written, as JSON."""

    def run(self) -> dict[str, Any]:
        """The figures of `project`."""
        return project(self)


_COMMANDS: Any = (
    Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Objects, tyro.conf.subcommand("objects")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Frozen, tyro.conf.subcommand("frozen")]
    | Annotated[Sam, tyro.conf.subcommand("sam")]
    | Annotated[Scale, tyro.conf.subcommand("scale")]
    | Annotated[Project, tyro.conf.subcommand("project")]
)


def main(argv: list[str] | None = None) -> int:
    """Run a benchmark and print its figures."""
    command = tyro.cli(_COMMANDS, prog="benchmark.py", description=__doc__, args=argv, registry=PARSERS)
    try:
        with logged_to(sys.stderr):  # standard output holds only the figures
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
