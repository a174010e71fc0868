"""Where a command runs: on which Ray, with which processes, with which share of a node each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_wsss.console import counted
from ray_wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The Ray that a command uses."""

    address: str | None = None
    """Address of a Ray cluster: auto or host:port.
    Without it $RAY_ADDRESS or the cluster of the job, else a new Ray on this machine."""
    verbose: bool = False
    """Show the log of Ray, its progress bars, and stack traces."""
    wait_for_nodes: float | None = None
    """Minutes to wait for nodes if the cluster has no room for the command's processes, 0 or more.
    Without it 30 on a cluster that grows, whose autoscaler is asked for the nodes, and 0 on others."""
    log_format: Literal["text", "json"] = "text"
    """Format of the command's log lines. json: one object a line, with time, level, logger and message."""

    def __post_init__(self) -> None:
        if self.wait_for_nodes is not None and self.wait_for_nodes < 0:
            raise UserError(f"--wait-for-nodes is {self.wait_for_nodes:g}; expected 0 or more minutes")


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of a node that one process gets."""

    cpus: float
    gpus: float = 0
    memory_gib: float = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Labels of the nodes that may have the process, as by `parse_selector`."""

    @property
    def by_name(self) -> dict[str, float]:
        """Amounts by Ray's names, memory in bytes; without zeros."""
        return {kind: each for kind, each in self._all.items() if each > 0}

    @property
    def _all(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gib * 2**30}

    def __str__(self) -> str:
        wanted = ", ".join(f"{key}={value}" for key, value in self.labels.items())
        return describe_resources(self._all) + (f" on nodes with {wanted}" if wanted else "")


def describe_resources(by_name: Mapping[str, float]) -> str:
    """``2 CPUs, 1 GPU and 4 GiB of memory``."""
    cpus, gpus, memory = (by_name.get(kind, 0) for kind in ("CPU", "GPU", "memory"))
    return f"{counted(cpus, 'CPU')}, {counted(gpus, 'GPU')} and {memory / 2**30:.3g} GiB of memory"


def parse_selector(text: str | None, flag: str) -> dict[str, str]:
    """Conditions by label key from Ray's notation, such as ``market=spot,zone=in(a,b)``; empty for None.

    A condition is a value, ``!value``, ``in(a,b)`` or ``!in(a,b)``.

    Args:
        flag: name of the flag, for the message.

    Raises:
        UserError: a part is not KEY=CONDITION.
    """
    found: dict[str, str] = {}
    for part in re.split(r",(?![^(]*\))", text) if text else ():
        match = re.fullmatch(r"\s*([^=\s]+)=(!?in\([^()]+\)|!?[^()!\s]+)\s*", part)
        if match is None:
            raise UserError(
                f"{flag} has '{part}'; expected KEY=VALUE, with VALUE, !VALUE, in(A,B) or !in(A,B)"
            )
        found[match[1]] = match[2]
    return found


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The actors of a stage. The user declares them; a driver without a GPU could not detect any."""

    actors: int = 1
    """Actors (processes), each with networks of its own; 0 works in this process, without Ray."""
    cpus_per_actor: float = 1
    """CPUs, and so torch threads, of an actor; above 0. Without actors torch decides."""
    gpus_per_actor: float = 0
    """GPUs of an actor, 0 or more; actors with a fraction share a GPU."""
    memory_gib_per_actor: float = 1
    """Memory of its node that Ray reserves for an actor, in GiB, 0 or more. It is not a limit."""
    actor_label_selector: str | None = None
    """Labels of the nodes that may have an actor, such as ray.io/accelerator-type=H100,market=!spot.
    Values may be VALUE, !VALUE, in(A,B) or !in(A,B). Without it any node may."""
    decode_label_selector: str | None = None
    """Labels of the nodes that may decode images for the actors. Without it any node may."""

    def __post_init__(self) -> None:
        parse_selector(self.decode_label_selector, "--decode-label-selector")
        parse_selector(self.actor_label_selector, "--actor-label-selector")
        if self.actors < 0:
            raise UserError(f"the number of actors is {self.actors}; expected 0 or more")
        if self.cpus_per_actor <= 0 or self.gpus_per_actor < 0:
            raise UserError(
                f"an actor gets {self.cpus_per_actor:g} CPUs and {self.gpus_per_actor:g} GPUs; "
                "expected more than 0 CPUs and 0 or more GPUs"
            )
        if self.memory_gib_per_actor < 0:
            raise UserError(f"memory_gib_per_actor is {self.memory_gib_per_actor:g}; expected 0 or more")

    @property
    def share(self) -> Share:
        """Share of one actor."""
        return Share(
            cpus=self.cpus_per_actor,
            gpus=self.gpus_per_actor,
            memory_gib=self.memory_gib_per_actor,
            labels=parse_selector(self.actor_label_selector, "--actor-label-selector"),
        )

    @property
    def decode_share(self) -> Share:
        """Share of a task that decodes images: one CPU, or as many as an actor without a GPU has, if fewer.

        With half a CPU each, an actor and its decoding task fit on a node with one CPU.
        """
        cpus = 1 if self.gpus_per_actor > 0 else min(1, self.cpus_per_actor)
        return Share(cpus=cpus, labels=parse_selector(self.decode_label_selector, "--decode-label-selector"))

    @property
    def device(self) -> str:
        """Torch device of an actor."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes of a training."""

    workers: int = 1
    """Data-parallel workers on Ray Train; 0 trains in this process, without Ray."""
    cpus_per_worker: float = 1
    """CPUs, and so torch threads, of a worker; above 0. Without workers torch decides."""
    gpus_per_worker: float = 0
    """GPUs of a worker: 0 or 1."""
    memory_gib_per_worker: float = 1
    """Memory of its node that Ray reserves for a worker, in GiB, 0 or more. It is not a limit."""
    max_failures: int = 3
    """Times that training resumes automatically after a worker or its node died; 0 or more."""
    worker_label_selector: str | None = None
    """Labels of the nodes that may have a worker, such as ray.io/accelerator-type=H100,market=!spot.
    Values may be VALUE, !VALUE, in(A,B) or !in(A,B). Without it any node may."""

    def __post_init__(self) -> None:
        parse_selector(self.worker_label_selector, "--worker-label-selector")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; expected 0 or more")
        if self.cpus_per_worker <= 0:
            raise UserError(f"cpus_per_worker is {self.cpus_per_worker:g}; expected more than 0")
        if self.max_failures < 0:
            raise UserError(f"max_failures is {self.max_failures}; expected 0 or more")
        if self.gpus_per_worker not in (0, 1):
            raise UserError(f"gpus_per_worker is {self.gpus_per_worker:g}; expected 0 or 1")
        if self.memory_gib_per_worker < 0:
            raise UserError(f"memory_gib_per_worker is {self.memory_gib_per_worker:g}; expected 0 or more")

    @property
    def device(self) -> str:
        """Torch device of a worker."""
        return "cuda" if self.gpus_per_worker > 0 else "cpu"

    @property
    def share(self) -> Share:
        """Share of one worker."""
        return Share(
            cpus=self.cpus_per_worker,
            gpus=self.gpus_per_worker,
            memory_gib=self.memory_gib_per_worker,
            labels=parse_selector(self.worker_label_selector, "--worker-label-selector"),
        )


STAGE_HERE: Mapping[str, Any] = {"resources": Resources(actors=0), "cluster": Cluster()}
"""Arguments with which a stage works in the calling process, without Ray."""
TRAINING_HERE: Mapping[str, Any] = {"workers": Workers(workers=0), "cluster": Cluster()}
"""Arguments with which a training works in the calling process, without Ray."""
