"""Settling which SAM a run has, and its encoder's precision, before the run and for all of its processes."""

import logging
from dataclasses import replace
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
from ray_wsss.runs.dependencies import noted_sam, settled, with_absolute_paths
from ray_wsss.runs.manifest import require_finished

log = logging.getLogger(__name__)

_SLIVER = 0.01
"""Share of a GPU for a task that only asks for its capability, so that it fits beside other processes."""


def settle_sam(
    recipe: Recipe,
    out: Path,
    stage: str,
    *,
    processes: Resources | Workers,
    cluster: Cluster,
    overwrite: bool | None = None,
    encodes: bool = True,
    embeddings: Path | None = None,
) -> Recipe:
    """``recipe`` with absolute paths, and with one SAM and one precision of its encoder instead of "auto".

    Both decide the result, so they are settled here, once, and noted in the manifest. Every process
    gets the same, whatever its device, so no output mixes two.

    The SAM is that of ``embeddings``, else that of the run that began ``out``, else what suits the device
    (`config.SamConfig.on`).

    On a CPU the CPU of this machine decides the precision. This machine may have none of the GPUs, so for
    GPUs the precision is, in this order:

    1. that of the run that began ``out``: a run resumes on other GPUs, and one that is finished asks nobody;
    2. what suits the oldest GPU of the cluster that may get a process.

    Args:
        out, stage: output folder of the run, and the command that makes it.
        processes: the run's processes. Without any, this process uses its own GPU.
        overwrite: as for `runs.manifest.Output.begin`; with True, ``out`` is not looked at.
        encodes: whether the result depends on SAM's encoder; without that, the precision stays "auto", and
            without embeddings the name does too.
        embeddings: output of `run_embed` that SAM's decoder reads.

    Raises:
        UserError: the manifest in ``out`` or in ``embeddings`` can't be read, no GPU can be asked, or
            sam.checkpoint is given although nothing tells whose weights it holds.
    """
    noted = {} if overwrite else noted_sam(out, stage)
    if encodes or embeddings is not None:
        recipe = _with_name(recipe, embeddings, noted.get("sam.name"), out, processes.device)
    if not encodes:
        return with_absolute_paths(recipe)
    if recipe.sam.precision != "auto" or processes.device != "cuda":
        return settled(recipe, precision_on(recipe.sam, processes.device))
    if noted:
        precision: EncoderPrecision = noted.get("sam.precision", "fp32")  # as `sam_settings` notes it
    else:
        precision = precision_on(recipe.sam, "cuda", _oldest(processes, cluster))
    log.info("sam.precision is %s (%s)", precision, f"as {out} was begun" if noted else "auto")
    return settled(recipe, precision)


def _with_name(recipe: Recipe, embeddings: Path | None, noted: str | None, out: Path, device: str) -> Recipe:
    """``recipe`` with the name of a SAM instead of "auto"."""
    if recipe.sam.name != "auto":
        return recipe
    if embeddings is not None:
        name, why = require_finished(embeddings, "embed")["sam.name"], f"as in {embeddings}"
    elif noted is not None:
        name, why = noted, f"as {out} was begun"
    else:
        name, why = recipe.sam.on(device).name, f"auto, on a {'GPU' if device == 'cuda' else 'CPU'}"
    log.info("sam.name is %s (%s)", name, why)
    return replace(recipe, sam=replace(recipe.sam, name=name))


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
