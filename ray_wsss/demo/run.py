"""The demo: the whole pipeline on generated scenes, offline, with a picture at the end.

The classifier is trained twice with the same seed and number of iterations, without CPM and with it, so
that the two CAMs show what CPM does. One Ray runs all steps, two at a time, in processes that stay: on so few
images, starting processes for each stage would take longer than the stages.
"""

import logging
import time
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
from ray_wsss.demo.settings import DemoSettings
from ray_wsss.runs.manifest import Output
from ray_wsss.storage import write_json

log = logging.getLogger(__name__)

_AT_ONCE = 2
"""Steps that run at the same time, most with one thread. Two steps on two cores take less time together than
one after the other with two threads each."""


def _step(name: str, what: str, weight: float, needs: str = "") -> Step:
    return Step(name=name, what=what, work=f"ray_wsss.demo.steps:{name}", needs=needs.split(), weight=weight)


_SCENES = "ray_wsss.demo.scene_steps"
_EMBED = _step("embed", "SAM encodes each training scene once", 6, "train_scenes")
_STEPS = (
    Step(name="train_scenes", what="draw and ingest scenes to train on", work=f"{_SCENES}:train", weight=5),
    Step(
        name="held_out_scenes", what="draw and ingest held-out scenes", work=f"{_SCENES}:held_out", weight=3
    ),
    _EMBED,
    _step("train_cpm", "train the classifier with CPM", 65, "train_scenes embed"),
    _step("train_plain", "train the classifier without CPM", 43, "train_scenes held_out_scenes"),
    _step("label_train", "pseudo labels of the training scenes", 8, "train_cpm"),
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
"""In the order in which they start, if several could."""


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    cluster: Cluster | None = None,
    recipe: Recipe | None = None,
    scenes: tuple[int, int] = (TRAIN_SCENES, HELD_OUT_SCENES),
) -> dict[str, Any]:
    """Run the demo into ``out``; running it again resumes it.

    Writes ``first_look.png``, ``overview.png``, ``metrics.json`` and ``report.html`` beside the folders of
    all stages.

    Args:
        recipe: settings; None: those of the preset demo, with ``cpm.view=image``.
        scenes: numbers of training scenes and of held-out scenes.

    Returns:
        The content of ``metrics.json``.
    """
    started = time.perf_counter()
    cluster = cluster or Cluster()
    settings = recipe or override(PRESETS["demo"], {"cpm.view": "image"})
    output = Output(out, "demo", {"seed": seed})
    output.begin()
    demo = DemoSettings(
        out=out.absolute(),
        recipe=override(settings, {"classifier.seed": seed, "segmenter.seed": seed}),
        seed=seed,
        train_scenes=scenes[0],
        held_out_scenes=scenes[1],
    )
    log.info("%d training scenes, %d held-out scenes, everything in %s", *scenes, out)
    log.info("after some seconds, %s shows the scenes, and later the first CAMs", out / "first_look.png")
    steps = _STEPS if demo.embeddings is not None else _without(_EMBED)
    with ray_session(cluster.address, verbose=cluster.verbose):
        log.info("Ray runs after %.0f s", time.perf_counter() - started)
        with StepBars([StepState(step=step) for step in steps], _AT_ONCE) as display:
            found = run_steps(steps, demo, folder=demo.out / "steps", at_once=_AT_ONCE, display=display)
    metrics = metrics_of(found)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    write_json(metrics, out / "metrics.json")
    output.finish()
    return metrics


def _without(left_out: Step) -> list[Step]:
    """The steps without one, for which no other waits then."""
    return [
        replace(step, needs=[name for name in step.needs if name != left_out.name])
        for step in _STEPS
        if step is not left_out
    ]
