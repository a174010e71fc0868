"""Label on 1, 2 and 4 nodes of one CPU each: DATASET CLASSIFIER OUT.

A script of its own, since its cluster can't share a process with that of the tests. Leaves OUT/1, OUT/2 and
OUT/4, and prints, as JSON, on how many nodes there were actors.
"""

import json
import sys
from pathlib import Path

from ray._private.state import actors

from ray_wsss.cluster.small_nodes import small_nodes
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources

NODES = (1, 2, 4)


def main(dataset: Path, classifier: Path, out: Path) -> None:
    recipe = override(PRESETS["demo"], {"label.scales": (1.0,), "label.flip": False})
    used: dict[str, int] = {}
    seen: set[str] = set()
    with small_nodes() as grow_to:
        for nodes in NODES:
            grow_to(nodes)
            run_label(
                recipe,
                dataset=dataset,
                classifier=classifier,
                out=out / str(nodes),
                resources=Resources(actors=nodes, cpus_per_actor=0.5),
                cluster=Cluster(),
            )
            found = {
                name: actor["Address"]["NodeID"]
                for name, actor in actors().items()
                if name not in seen and "SamLabeller" in actor["ActorClassName"]
            }
            seen |= found.keys()
            used[str(nodes)] = len(set(found.values()))
    print(json.dumps(used))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
