"""The demo: the whole pipeline on generated scenes, offline, with a picture at the end.

The classifier is trained twice with the same seed and number of iterations, without CPM and with it, so
that the two CAMs show what CPM does. One Ray runs all steps, two at a time, in processes that stay: on so few
images, starting processes for each stage would take longer than the stages.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.step_progress import StepBars
from ray_wsss.cluster.steps import Step, StepState, run_steps
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster
from ray_wsss.demo.metrics import metrics_of
from ray_wsss.demo.scenes import HELD_OUT_SCENES, TRAIN_SCENES
from ray_wsss.demo.settings import DemoSettings, SceneDemo
from ray_wsss.runs.manifest import Output
from ray_wsss.storage import write_json

log = logging.getLogger(__name__)

_AT_ONCE = 2
"""Steps that run at the same time, most with one thread. Two steps on two cores take less time together than
one after the other with two threads each."""


def _step(name: str, what: str, weight: float, needs: str = "") -> Step:
    return Step(name=name, what=what, work=f"ray_wsss.demo.steps:{name}", needs=needs.split(), weight=weight)


_SCENES = "ray_wsss.demo.scene_steps"
_SCENE_STEPS = (
    Step(name="train_scenes", what="draw and ingest scenes to train on", work=f"{_SCENES}:train", weight=5),
    Step(
        name="held_out_scenes", what="draw and ingest held-out scenes", work=f"{_SCENES}:held_out", weight=3
    ),
)
STEPS = (
    _step("warm_up", "train the classifier until CPM starts", 16, "train_scenes"),
    _step("embed", "SAM encodes each image to train on once", 6, "train_scenes"),
    _step("train_cpm", "go on training it with CPM", 60, "warm_up embed"),
    _step("train_plain", "go on training it without CPM", 33, "warm_up held_out_scenes"),
    _step("label_train", "pseudo labels of the images to train on", 8, "train_cpm"),
    # Nothing else runs beside it, but for the first seconds.
    replace(_step("train_segmenter", "train the segmenter on them", 38, "label_train"), threads=_AT_ONCE),
    _step("measure_plain", "labels and scores without CPM", 8, "train_plain"),
    _step("measure_cpm", "labels and scores with CPM", 8, "train_cpm held_out_scenes"),
    _step("measure_segmenter", "scores of the segmenter", 2, "train_segmenter"),
    _step("draw_overview", "draw overview.png", 3, "train_segmenter measure_cpm measure_plain"),
    Step(
        name="report",
        what="write the report",
        work="ray_wsss.demo.steps:report",
        needs=("measure_segmenter", "measure_plain", "measure_cpm"),
        takes_results=True,
        weight=5,
    ),
)
"""The steps on any images, in the order in which they start, if several could."""


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    cluster: Cluster | None = None,
    recipe: Recipe | None = None,
    scenes: tuple[int, int] = (TRAIN_SCENES, HELD_OUT_SCENES),
) -> dict[str, Any]:
    """Run the demo on generated scenes into ``out``; running it again resumes it.

    Writes ``first_look.png``, ``overview.png``, ``metrics.json`` and ``report.html`` beside the folders of
    all stages.

    Args:
        recipe: settings; None: those of the preset demo, with ``cpm.view=image``.
        scenes: numbers of training scenes and of held-out scenes.

    Returns:
        The content of ``metrics.json``.
    """
    started, cluster = time.perf_counter(), cluster or Cluster()
    output = Output(out, "demo", {"seed": seed})
    output.begin()
    demo = SceneDemo(
        out=out.absolute(),
        recipe=seeded(recipe or override(PRESETS["demo"], {"cpm.view": "image"}), seed),
        seed=seed,
        train_scenes=scenes[0],
        held_out_scenes=scenes[1],
    )
    log.info("%d training scenes, %d held-out scenes, everything in %s", *scenes, out)
    log.info("after some seconds, %s shows the scenes, and later the first CAMs", out / "first_look.png")
    with ray_session(cluster.address, verbose=cluster.verbose):
        log.info("Ray runs after %.0f s", time.perf_counter() - started)
        metrics = run_the_steps([*_SCENE_STEPS, *STEPS], demo, started)
    output.finish()
    return metrics


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """``recipe`` with the seed of both trainings."""
    return override(recipe, {"classifier.seed": seed, "segmenter.seed": seed})


def run_the_steps(steps: Sequence[Step], demo: DemoSettings, started: float) -> dict[str, Any]:
    """Run the steps, and write the metrics, with the seconds since ``started`` and those of each step."""
    steps = _only([step for step in steps if step.name != "embed" or demo.embeddings is not None])
    with StepBars([StepState(step=step) for step in steps], _AT_ONCE) as display:
        found = run_steps(steps, demo, folder=demo.out / "steps", at_once=_AT_ONCE, display=display)
    metrics = metrics_of(found)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    metrics["seconds_by_step"] = {state.step.what: round(state.seconds or 0, 1) for state in display.states}
    write_json(metrics, demo.out / "metrics.json")
    return metrics


def _only(steps: Sequence[Step]) -> list[Step]:
    """Steps that wait for none but one another."""
    names = {step.name for step in steps}
    return [replace(step, needs=[name for name in step.needs if name in names]) for step in steps]
