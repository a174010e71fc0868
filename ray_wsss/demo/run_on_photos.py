"""The demo on people's own photographs: the steps of `demo.run`, with a quarter of them held out."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_wsss.cluster.connect import ray_session
from ray_wsss.config import Recipe
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster
from ray_wsss.demo.photos import ingest_photos, read_photos, with_batches_of
from ray_wsss.demo.pictures import save_first_look
from ray_wsss.demo.run import STEPS, run_the_steps, seeded
from ray_wsss.demo.settings import DemoSettings
from ray_wsss.runs.manifest import Output

log = logging.getLogger(__name__)

_WEIGHTS = {
    "warm_up": 45,
    "embed": 25,
    "train_cpm": 75,
    "train_plain": 45,
    "label_train": 30,
    "train_segmenter": 330,
}
"""About the seconds of the long steps with 300 photographs."""


def run_photo_demo(
    photos: Path, out: Path, *, seed: int = 0, cluster: Cluster | None = None, recipe: Recipe | None = None
) -> dict[str, Any]:
    """Run the demo on photographs into ``out``; running it again resumes it.

    A quarter of them is held out. Without masks there are no scores. It writes what `demo.run.run_demo` does.

    Args:
        photos: see `demo.photos.read_photos`.
        recipe: settings; None: those of the preset photos.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: as `demo.photos.read_photos` and `demo.photos.ingest_photos`.
    """
    started, cluster = time.perf_counter(), cluster or Cluster()
    source = read_photos(photos, seed)
    output = Output(out, "demo", {"seed": seed, "photos": str(photos.absolute())})
    output.begin()
    demo = DemoSettings(out=out.absolute(), recipe=seeded(recipe or PRESETS["photos"], seed), seed=seed)
    ingest_photos(source, demo)
    demo = replace(demo, recipe=with_batches_of(demo.recipe, demo.train))
    save_first_look(demo)
    log.info("%s shows some of the held-out photographs, later with CAMs", out / "first_look.png")
    with ray_session(cluster.address, verbose=cluster.verbose):
        steps = [replace(step, weight=_WEIGHTS.get(step.name, 2 * step.weight)) for step in STEPS]
        metrics = run_the_steps(steps, demo, started)
    output.finish()
    return metrics
