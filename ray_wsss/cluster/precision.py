"""Settling the precision of SAM's encoder before a run, for all of its processes at once."""

import logging
from pathlib import Path

import ray
import torch

from ray_wsss.cluster.capacity import ACCELERATOR, live_nodes, room_on
from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.growing import room_for
from ray_wsss.config import EncoderPrecision, Recipe
from ray_wsss.config.resources import Cluster, Resources, Share, Workers
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.precision import Capability, precision_on
from ray_wsss.runs.dependencies import noted_precision, settled, with_absolute_paths

log = logging.getLogger(__name__)

_SLIVER = 0.01
"""Share of a GPU for a task that only asks for its capability, so that it fits beside other processes."""


def settle_precision(
    recipe: Recipe,
    out: Path,
    stage: str,
    *,
    processes: Resources | Workers,
    cluster: Cluster,
    overwrite: bool | None = None,
    encodes: bool = True,
) -> Recipe:
    """``recipe`` with absolute paths, and with one precision of SAM's encoder instead of "auto".

    The precision decides the result, so it is settled here, once, and noted in the manifest. Every process
    gets the same, whatever its device, so no output mixes two. On a CPU the CPU of this machine decides. This
    machine may have none of the GPUs, so for GPUs the precision is, in this order:

    1. that of the run that began ``out``: a run resumes on other GPUs, and one that is finished asks nobody;
    2. what suits the oldest GPU of the cluster that may get a process.

    Args:
        out, stage: output folder of the run, and the command that makes it.
        processes: the run's processes. Without any, this process uses its own GPU.
        overwrite: as for `runs.manifest.Output.begin`; with True, ``out`` is not looked at.
        encodes: whether the result depends on SAM's encoder; without that, "auto" stays.

    Raises:
        UserError: the manifest in ``out`` can't be read, or no GPU can be asked.
    """
    if not encodes:
        return with_absolute_paths(recipe)
    if recipe.sam.precision != "auto" or processes.device != "cuda":
        return settled(recipe, precision_on(recipe.sam, processes.device))
    noted = None if overwrite else noted_precision(out, stage)
    precision: EncoderPrecision = noted or precision_on(recipe.sam, "cuda", _oldest(processes, cluster))
    why = f"as {out} was begun" if noted else "auto"
    log.info("sam.precision is %s (%s)", precision, why)
    return settled(recipe, precision)


def _oldest(processes: Resources | Workers, cluster: Cluster) -> Capability:
    """Lowest compute capability of the GPUs on which a process may run."""
    if (processes.workers if isinstance(processes, Workers) else processes.actors) == 0:
        if not torch.cuda.is_available():
            raise UserError("without workers or actors, this process is to use a GPU, but torch finds none")
        return torch.cuda.get_device_capability()
    with (
        ray_session(cluster.address, verbose=cluster.verbose),
        room_for(count=1, share=processes.share, what="a process with SAM", cluster=cluster),
    ):
        return min(ask_gpus(processes.share))


def ask_gpus(share: Share) -> list[Capability]:
    """Compute capabilities of the GPUs of a Ray cluster: one of each type, with room for ``share``."""
    nodes = [node for node in live_nodes(share.labels) if room_on(node, share)]
    # Ray names the type of a node's GPUs as a resource; nodes without that name count as one type.
    kinds = {next((name for name in node if name.startswith(ACCELERATOR)), None) for node in nodes}
    asked = [
        ray.remote(_capability)
        .options(
            num_cpus=0,
            num_gpus=_SLIVER,
            resources={kind: 0.001} if kind else None,
            label_selector=dict(share.labels) or None,
        )
        .remote()
        for kind in kinds
    ]
    return ray.get(asked)


def _capability() -> Capability:
    return torch.cuda.get_device_capability()
