"""Clusters that grow: asking the autoscaler for nodes, waiting until there is room, giving the nodes back."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # pyright: ignore[reportAttributeAccessIssue]
from ray.experimental.internal_kv import _internal_kv_get  # pyright: ignore[reportPrivateUsage]

from ray_wsss.cluster.capacity import check_resources, room_for_processes
from ray_wsss.cluster.connect import ray_session
from ray_wsss.config.resources import Cluster, Share
from ray_wsss.console import counted

log = logging.getLogger(__name__)

PATIENCE_MINUTES = 30.0
"""Minutes to wait for the nodes of a cluster that grows, unless the user says otherwise."""
_POLL_S = 1.0
_TELL_EVERY_S = 60.0
_ANSWER_AFTER_S = 15.0
"""Seconds after which the autoscaler's state is an answer to this request, not to an earlier one."""
_STATUS = "__autoscaling_status"
"""Key under which the first version of Ray's autoscaler writes its state, as JSON."""


@contextmanager
def room_for(
    *,
    count: int,
    share: Share,
    what: str,
    cluster: Cluster,
    spare: Share | None = None,
    least: int | None = None,
    refuse: bool = True,
) -> Iterator[None]:
    """Wait until the cluster has room for some processes, and keep it that large meanwhile.

    A cluster that grows is asked for nodes, which it may take back after the ``with`` block. The request is
    the cluster's only one: that of another driver which asked before is replaced.

    Args:
        count, share, spare: as for `cluster.capacity.check_resources`.
        what: the command, for messages.
        cluster: how long to wait.
        least: processes without which there is no beginning; None: all. A cluster that grows adds the others
            while these work, and for another one is waited until there is room for all or the time is over.
        refuse: whether a lack of room is an error here; False leaves that to the caller.

    Raises:
        UserError: there is no room for the processes after the time to wait.
    """
    if room_for_processes(count, share, spare) == count:
        yield
        return
    grows = can_grow()
    least = count if least is None else least
    minutes = cluster.wait_for_nodes
    if minutes is None:
        minutes = PATIENCE_MINUTES if grows else 0
    with _asked_for(count, share, spare) if grows else nullcontext():
        _wait(count, least if grows else count, share, spare, what, minutes)
        if refuse:
            check_resources(count=least, share=share, what=what, spare=spare)
        yield


@contextmanager
def task_session(cluster: Cluster, what: str) -> Iterator[None]:
    """Connect to Ray for a command that runs tasks of one CPU each, and wait for the first node."""
    with (
        ray_session(cluster.address, verbose=cluster.verbose),
        room_for(count=1, share=Share(cpus=1), what=what, cluster=cluster),
    ):
        yield


def can_grow() -> bool:
    """True if the connected cluster has an autoscaler that adds nodes.

    On a cluster without one, Ray 2.60 names the type of each node after its id. Its autoscaler names the
    node types of its own configuration, in one place in version 1 and in another in version 2.
    """
    status = json.loads(_internal_kv_get(_STATUS) or b"{}")
    report = status.get("autoscaler_report") or {}
    types = report.get("node_type_mapping") or {}
    if not types:
        found = get_cluster_status(ray.get_runtime_context().gcs_address)
        types = {node.node_id: node.ray_node_type_name for node in found.active_nodes + found.idle_nodes}
    return any(kind != f"node_{node}" for node, kind in types.items())


def _wait(count: int, enough: int, share: Share, spare: Share | None, what: str, minutes: float) -> None:
    """Wait until there is room for ``enough`` processes, for ``minutes`` at most, and tell about it."""
    began = told = time.monotonic()
    in_vain = False
    room = room_for_processes(count, share, spare)
    if room < enough and minutes > 0:
        log.info(
            "%s waits for nodes: it wants %s x %s, and there is room for %s; it gives up after %s",
            *(what, count, share, room, counted(minutes, "minute")),
        )
    while room < enough and (waited := time.monotonic() - began) < minutes * 60:
        if not in_vain and waited > _ANSWER_AFTER_S and (in_vain := _in_vain()):
            log.warning(
                "%s waits for nodes that the cluster's autoscaler can't add: it has no type of node with so "
                "much CPU, GPU and memory, or its largest number of nodes is too small",
                what,
            )
        if time.monotonic() - told >= _TELL_EVERY_S:
            told = time.monotonic()
            log.info("%s waits for nodes: room for %s of %s after %.0f min", what, room, count, waited / 60)
        time.sleep(_POLL_S)
        room = room_for_processes(count, share, spare)
    if enough <= room < count:
        log.info("%s begins with %s of %s; the others follow when their nodes are up", what, room, count)


def _in_vain() -> bool:
    """True if the autoscaler can't meet the request for nodes. Its version 1 never says so."""
    answer = GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status()
    state = GetClusterStatusReply.FromString(answer).autoscaling_state
    return bool(state.infeasible_cluster_resource_constraints)


@contextmanager
def _asked_for(count: int, share: Share, spare: Share | None) -> Iterator[None]:
    wanted = [(dict(share.by_name), dict(share.labels))] * count
    if spare is not None:
        wanted.append((dict(spare.by_name), dict(spare.labels)))
    request_resources(
        bundles=[bundle for bundle, _ in wanted], bundle_label_selectors=[labels for _, labels in wanted]
    )
    try:
        yield
    finally:
        request_resources(bundles=[])
