"""Label on two nodes, with an actor on each, and kill the second while it works: DATASET CLASSIFIER OUT.

A script of its own, since its cluster can't share a process with that of the tests.
"""

import os
import sys
import time
from pathlib import Path
from threading import Thread

import ray
from ray.cluster_utils import Cluster as LocalCluster

from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources

PATIENCE_S = 120


def main(dataset: Path, classifier: Path, out: Path) -> None:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 3})
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address)
    recipe = override(PRESETS["demo"], {"label.scales": (1.0,), "label.flip": False})
    failures: list[BaseException] = []

    def label() -> None:
        try:
            run_label(
                recipe,
                dataset=dataset,
                classifier=classifier,
                out=out,
                # More than half a node, so that each has an actor; one thread, as in the undisturbed run.
                resources=Resources(actors=2, cpus_per_actor=1.75),
                cluster=Cluster(verbose=True),
            )
        except BaseException as error:
            failures.append(error)

    run = Thread(target=label)
    run.start()
    deadline = time.monotonic() + PATIENCE_S
    while len(list((out / "shards").glob("*.parquet"))) < 3:
        assert run.is_alive(), failures
        assert time.monotonic() < deadline, "labelling does not get going"
        time.sleep(0.02)
    cluster.remove_node(second, allow_graceful=False)
    assert run.is_alive(), "the node went too late to be missed"
    run.join(PATIENCE_S)
    assert not run.is_alive(), "labelling does not go on without the node"
    ray.shutdown()
    cluster.shutdown()
    if failures:
        raise failures[0]


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
