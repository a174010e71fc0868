"""Flags that several commands have: each group is a dataclass, and a field of the commands that have it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ray_wsss.config import Recipe
from ray_wsss.config.export import ExportFilter
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.config.sweep import SweepOptions
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
class Settings:
    """Where the settings come from that no flag gives."""

    config: Path | None = None
    """TOML file with settings that replace the preset's, such as the best.toml of a sweep."""
    preset: PresetName = "voc"
    """Source of all other settings. Without it the preset that --config names (for a sweep also the one that
    --space names), else voc."""


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """`Settings`, and what happens to an output folder that is in use."""

    overwrite: bool = False
    """Replace the content of --out."""


@dataclass(frozen=True, kw_only=True)
class SamActors(Resources):
    """`Resources` of the stages that run SAM, whose flags have other names."""

    actors: Annotated[int, tyro.conf.arg(name="sam-actors")] = 1
    """Actors, each with networks of its own. Other CPUs decode images for them."""
    cpus_per_actor: Annotated[float, tyro.conf.arg(name="num-cpus-per-actor")] = 1
    """CPUs, and so torch threads, of an actor; more than 0."""
    gpus_per_actor: Annotated[float, tyro.conf.arg(name="num-gpus-per-actor")] = 0
    """GPUs of an actor, 0 or more; actors with a fraction share a GPU."""


@dataclass(frozen=True, kw_only=True)
class TrialWorkers(Workers):
    """`Workers` of one trial of a sweep."""

    workers: Annotated[int, tyro.conf.arg(name="workers-per-trial")] = 1
    """Data-parallel workers of a trial, at least 1."""


ClusterFlags = Annotated[Cluster, tyro.conf.arg(name="")]
FilterFlags = Annotated[ExportFilter, tyro.conf.arg(name="")]
OutputSettingsFlags = Annotated[OutputSettings, tyro.conf.arg(name="")]
RecipeFlags = Annotated[Recipe, tyro.conf.arg(name="")]
ResourcesFlags = Annotated[Resources, tyro.conf.arg(name="")]
SamActorsFlags = Annotated[SamActors, tyro.conf.arg(name="")]
SettingsFlags = Annotated[Settings, tyro.conf.arg(name="")]
SweepFlags = Annotated[SweepOptions, tyro.conf.arg(name="")]
TrialWorkersFlags = Annotated[TrialWorkers, tyro.conf.arg(name="")]
WorkersFlags = Annotated[Workers, tyro.conf.arg(name="")]
