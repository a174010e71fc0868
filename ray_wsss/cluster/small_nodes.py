"""Several Ray nodes on one machine, to measure how work spreads over a cluster without having one."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster as LocalCluster

_LIGHT = {"object_store_memory": 100 * 2**20, "include_log_monitor": False}
"""Settings of each node; Ray 2.60 requires at least 75 MiB for an object store."""


@contextmanager
def small_nodes(cpus: int = 1) -> Iterator[Callable[[int], None]]:
    """A cluster with a head without CPUs, and as many nodes with a few CPUs each as the caller asks for.

    This process is connected to the cluster until the end, and must not be connected to a Ray before. The
    nodes are real processes of Ray (raylet, object store, agents), so tasks and objects travel as between
    machines, but the nodes share the CPUs of this machine.

    Yields:
        A function that adds nodes until the cluster has a given number, the head not counted. It never
        removes nodes.
    """
    os.environ |= {
        # As in `cluster.connect`, for Ray 2.60.
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray 2.60 gives its workers a low priority. Other programs on this machine would slow them down, and
        # the measurement with them.
        "RAY_worker_niceness": "0",
    }
    cluster = LocalCluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **_LIGHT}
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    def grow_to(count: int) -> None:
        while len(cluster.worker_nodes) < count:
            cluster.add_node(num_cpus=cpus, **_LIGHT)
        cluster.wait_for_nodes()

    try:
        yield grow_to
    finally:
        ray.shutdown()
        cluster.shutdown()
