"""Several Ray nodes on one machine, to see how work spreads over a cluster without having one."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster as LocalCluster

_LIGHT = {"object_store_memory": 100 * 2**20, "include_log_monitor": False}
"""Of a node; Ray takes no less than 75 MiB for an object store."""


@contextmanager
def small_nodes() -> Iterator[Callable[[int], None]]:
    """A cluster of a head without CPUs and, as many as are asked for, nodes with one CPU each.

    The process that enters is connected to it until the end, and must not have a Ray of its own. Nodes are
    Ray's own processes (raylet, object store, agents), so tasks and objects travel as between machines, but
    they share the CPUs that there are.

    Yields:
        what brings the cluster to a number of nodes, the head not counted; nodes are only ever added.
    """
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray makes workers polite, which beside other work would be measured as well.
        "RAY_worker_niceness": "0",
    }
    cluster = LocalCluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **_LIGHT}
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    def grow_to(count: int) -> None:
        while len(cluster.worker_nodes) < count:
            cluster.add_node(num_cpus=1, **_LIGHT)
        cluster.wait_for_nodes()

    try:
        yield grow_to
    finally:
        ray.shutdown()
        cluster.shutdown()
