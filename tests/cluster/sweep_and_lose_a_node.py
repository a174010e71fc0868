"""Sweep on two nodes and kill the second in the middle: SPACE DATASET OUT.

A script of its own, since its cluster can't share a process with that of the tests. Prints, as JSON, on which
nodes workers were, and which trials had ended when the node went.
"""

import json
import os
import sys
import time
from pathlib import Path
from threading import Thread

import ray
from ray.cluster_utils import Cluster as LocalCluster
from ray.util.state import list_actors

from ray_wsss.cluster.tune.run import run_sweep
from ray_wsss.cluster.tune.space import load_space
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.config.sweep import SweepOptions
from ray_wsss.sweeps.trials import ENDED, load_trials

PATIENCE_S = 480


def main(space_path: Path, dataset: Path, out: Path) -> None:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": True})
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address)
    space = load_space(space_path)
    failures: list[BaseException] = []

    def sweep() -> None:
        try:
            run_sweep(
                override(PRESETS["demo"], space.settings),
                space,
                dataset=dataset,
                validation=dataset,
                out=out,
                options=SweepOptions(),
                workers=Workers(),
                cluster=Cluster(verbose=True),
            )
        except BaseException as error:
            failures.append(error)

    run = Thread(target=sweep)
    run.start()
    deadline = time.monotonic() + PATIENCE_S
    nodes: set[str] = set()
    while len(nodes) < 2 or not _ended(out):
        nodes |= {str(actor.node_id) for actor in _workers(str(cluster.address))}
        assert run.is_alive(), failures
        assert time.monotonic() < deadline, f"workers on {nodes}, ended {_ended(out)}"
        time.sleep(0.2)
    ended = _ended(out)
    cluster.remove_node(second, allow_graceful=False)
    assert run.is_alive(), "the node went too late to be missed"
    run.join(PATIENCE_S)
    assert not run.is_alive(), "the sweep does not go on without the node"
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)
    ray.shutdown()
    cluster.shutdown()
    if failures:
        raise failures[0]
    print(json.dumps({"nodes": len(nodes), "ended": ended}))


def _workers(address: str) -> list:
    actors = list_actors(address=address, filters=[("class_name", "=", "RayTrainWorker")])
    return [actor for actor in actors if getattr(actor, "state", None) == "ALIVE"]


def _ended(out: Path) -> dict[str, int]:
    """Trials that ended, and when their record was last written."""
    paths = {t.number: out / "trials" / t.name / "trial.json" for t in load_trials(out) if t.status in ENDED}
    return {str(number): path.stat().st_mtime_ns for number, path in paths.items()}


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
