"""Checks that a cluster has room for the processes of a command; without room Ray would wait for ever."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from ray_wsss.config.resources import Share, counted, describe_resources
from ray_wsss.errors import UserError

ACCELERATOR = "accelerator_type:"
"""Start of the name of the resource by which Ray marks the type of a node's GPUs."""


def check_resources(*, count: int, share: Share, what: str, spare_cpus: float = 0) -> None:
    """Raise UserError if the cluster has no room for some processes; Ray would wait for ever.

    Args:
        count: number of processes.
        share: resources of each process; a process does not spread over nodes.
        what: description of the processes, for the message.
        spare_cpus: CPUs that must stay free on one node, for tasks that read data.
    """
    nodes = live_nodes()
    room = sum(room_on(node, share) for node in nodes)
    cpus = sum(node.get("CPU", 0) for node in nodes)
    # With every slot used, the CPUs left may be spread too thinly over the nodes to fit one reader.
    left = max((node.get("CPU", 0) - room_on(node, share) * share.cpus for node in nodes), default=0)
    full = room == count and left + 1e-6 < spare_cpus
    if room < count or full or cpus - count * share.cpus < spare_cpus:
        spare = f", and {counted(spare_cpus, 'CPU')} more to read data," if spare_cpus else ""
        asked = f"{count} x {share}{spare}"
        raise UserError(f"{what}: {asked} are asked for, but the Ray cluster has {describe_nodes(nodes)}")


def describe_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    """The total resources of nodes, in words."""
    kinds = ("CPU", "GPU", "memory")
    whole = {kind: sum(node.get(kind, 0) for node in nodes) for kind in kinds}
    return f"{describe_resources(whole)} on {counted(len(nodes), 'node')}"


def live_nodes() -> list[dict[str, float]]:
    """Resources by name of every live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def describe_cluster() -> dict[str, Any]:
    """Numbers of nodes, CPUs and GPUs, and types of accelerator, of the cluster, for the record of a run."""
    nodes = live_nodes()
    kinds = {
        name.removeprefix(ACCELERATOR) for node in nodes for name in node if name.startswith(ACCELERATOR)
    }
    sums = {kind.lower() + "s": sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    return {"nodes": len(nodes), **sums, "accelerators": sorted(kinds)}


def room_on(node: Mapping[str, float], share: Share) -> int:
    """Number of processes, each with the resources ``share``, that fit on a node."""
    wanted = share.by_name.items()
    return min((math.floor(node.get(kind, 0) / each + 1e-6) for kind, each in wanted), default=0)
