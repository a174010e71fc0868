"""Checks that a cluster has room for the processes of a command; without room Ray would wait for ever."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from ray_wsss.config.resources import Share, describe_resources
from ray_wsss.console import counted
from ray_wsss.errors import UserError

ACCELERATOR = "accelerator_type:"
"""Start of the name of the resource by which Ray marks the type of a node's GPUs."""


def check_resources(*, count: int, share: Share, what: str, spare: Share | None = None) -> None:
    """Raise UserError if the cluster has no room for some processes; Ray would wait for ever.

    Args:
        count: number of processes.
        share: resources of each process; a process does not spread over nodes.
        what: description of the processes, for the message.
        spare: what must stay free on one node, for tasks that read data.
    """
    if room_for_processes(count, share, spare) < count:
        also = f", and {counted(spare.cpus, 'CPU')} more to read data," if spare else ""
        asked = f"{count} x {share}{also}"
        nodes = live_nodes()
        without = share.gpus > 0 and not any(node.get("GPU", 0) for node in nodes)
        advice = "; leave out the flag that asks for GPUs, and CPUs do the work" if without else ""
        raise UserError(
            f"{what}: {asked} are asked for, but the Ray cluster has {describe_nodes(nodes)}{advice}"
        )


def room_for_processes(most: int, share: Share, spare: Share | None = None) -> int:
    """Number of processes, at most ``most``, that fit on the live nodes beside ``spare`` on one of them.

    The arguments are those of `check_resources`.
    """
    alive = _alive()
    rooms = [room_on(node["Resources"], share) if _meets(node, share.labels) else 0 for node in alive]
    room = sum(rooms)
    if spare is None:
        return min(most, room)
    # CPUs of the nodes that may read, whole, and with every slot of theirs used.
    readers = [
        (node["Resources"].get("CPU", 0), slots)
        for node, slots in zip(alive, rooms)
        if _meets(node, spare.labels)
    ]
    left = max((cpus - slots * share.cpus for cpus, slots in readers), default=0)
    whole, elsewhere = sum(cpus for cpus, _ in readers), room - sum(slots for _, slots in readers)

    def fits(count: int) -> bool:
        if count == room and left + 1e-6 < spare.cpus:
            return False  # the CPUs left may be spread too thinly over the nodes to fit one reader
        return whole - max(0, count - elsewhere) * share.cpus >= spare.cpus

    return next((count for count in range(min(most, room), 0, -1) if fits(count)), 0)


def describe_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    """The total resources of nodes, in words."""
    kinds = ("CPU", "GPU", "memory")
    whole = {kind: sum(node.get(kind, 0) for node in nodes) for kind in kinds}
    return f"{describe_resources(whole)} on {counted(len(nodes), 'node')}"


def live_nodes(labels: Mapping[str, str] | None = None) -> list[dict[str, float]]:
    """Resources by name of every live node.

    Args:
        labels: conditions by key that the labels of a node must meet (`config.resources.parse_selector`).
    """
    return [node["Resources"] for node in _alive() if _meets(node, labels or {})]


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _meets(node: Mapping[str, Any], conditions: Mapping[str, str]) -> bool:
    """True if a node's labels meet Ray's conditions: ``value``, ``!value``, ``in(a,b)`` and ``!in(a,b)``."""
    labels = node.get("Labels") or {}
    for key, condition in conditions.items():
        wanted = condition.removeprefix("!")
        listed = re.fullmatch(r"in\((.*)\)", wanted)
        values = [value.strip() for value in listed[1].split(",")] if listed else [wanted]
        if (labels.get(key) in values) == condition.startswith("!"):
            return False
    return True


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
