"""Label with GPUs that aren't there: DATASET CLASSIFIER OUT; prints which nodes did what, as JSON.

A script for a job of its own. SAM computes on the CPU; where Ray puts it is as with GPUs.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray.util.state import list_actors, list_tasks

from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources


class GpusOnPaper(Resources):
    """What asks Ray for GPUs and uses none."""

    @property
    def device(self) -> str:
        return "cpu"


def main(dataset: Path, classifier: Path, out: Path) -> None:
    recipe = override(PRESETS["demo"], {"label.scales": (1.0,), "label.flip": False})
    with ray_session():
        run_label(
            recipe,
            dataset=dataset,
            classifier=classifier,
            out=out,
            resources=GpusOnPaper(actors=4, gpus_per_actor=0.5),
            cluster=Cluster(),
        )
        job: Any = [("job_id", "=", ray.get_runtime_context().get_job_id())]
        actors: Any = list_actors(filters=job)
        tasks: Any = list_tasks(filters=job, limit=1000)
        nodes = {
            "SamLabeller": {a.node_id for a in actors if "SamLabeller" in a.class_name},
            "decode_images": {t.node_id for t in tasks if "decode_images" in t.name},
        }
    print(json.dumps({name: sorted(ids) for name, ids in nodes.items()}))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
