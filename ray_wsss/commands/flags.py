"""Flags that several commands have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ray_wsss.cluster.map import Resources
from ray_wsss.cluster.session import Cluster
from ray_wsss.cluster.train import Workers
from ray_wsss.config import Recipe
from ray_wsss.storage import is_remote, parse_path

PresetName = Literal["voc", "coco", "demo"]
PATHS = ConstructorRegistry()
"""How tyro reads flags that are paths: they may be URIs of a store."""


@PATHS.primitive_rule
def _path_rule(flag: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if flag.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: parse_path(words[0]),
        is_instance=lambda value: isinstance(value, Path) or is_remote(value),
        str_from_instance=lambda path: [str(path)],
    )


@dataclass(frozen=True, kw_only=True)
class SamActors:
    """The actors of the stages that run SAM."""

    sam_actors: int = 1
    """Actors, each with its own networks. Images are decoded beside them, on CPUs that are left."""
    num_cpus_per_actor: float = 1
    """CPUs, and so torch threads, of an actor."""
    num_gpus_per_actor: float = 0
    """GPUs of an actor; fractions share one."""
    memory_gib_per_actor: float = 1
    """Memory that Ray sets aside for an actor on its node, in GiB; it limits nothing."""

    @property
    def resources(self) -> Resources:
        return Resources(
            actors=self.sam_actors,
            cpus_per_actor=self.num_cpus_per_actor,
            gpus_per_actor=self.num_gpus_per_actor,
            memory_gib_per_actor=self.memory_gib_per_actor,
        )


ConfigFile = Path | None
ClusterFlags = Annotated[Cluster, tyro.conf.arg(name="")]
ResourcesFlags = Annotated[Resources, tyro.conf.arg(name="")]
RecipeFlags = Annotated[Recipe, tyro.conf.arg(name="")]
SamActorsFlags = Annotated[SamActors, tyro.conf.arg(name="")]
WorkersFlags = Annotated[Workers, tyro.conf.arg(name="")]
