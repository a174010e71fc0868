"""Flags that several commands have: each group is a dataclass, and a field of the commands that have it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ray_wsss.config import Recipe
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.export import ExportFilter
from ray_wsss.config.presets import DEFAULT_PRESET, PresetName
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.config.sweep import SweepOptions
from ray_wsss.storage import is_remote, parse_path

PARSERS = ConstructorRegistry()
"""How tyro reads the words after some flags."""
_OPTIONAL: dict[type, Callable[[str], Any]] = {Path: parse_path, str: str, int: int, float: float}
"""Types of optional flags, and how a word becomes one."""


@PARSERS.primitive_rule
def _path_rule(flag: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Paths may be URIs of a store."""
    if flag.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: parse_path(words[0]),
        is_instance=lambda value: isinstance(value, Path) or is_remote(value),
        str_from_instance=lambda path: [str(path)],
    )


@PARSERS.primitive_rule
def _optional_rule(flag: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """The help of an optional flag says PATH, not {None}|PATH, and {asha,none}, not {None,asha,none}."""
    choices = _choices(flag.type)
    kind = str if choices else next((kind for kind in _OPTIONAL if flag.type == kind | None), None)
    if kind is None:
        return None
    metavar = f"{{{','.join(choices)}}}" if choices else {str: "TEXT"}.get(kind, kind.__name__.upper())

    def read(words: list[str]) -> Any:
        if words[0] == "None":
            return None
        if choices and words[0] not in choices:
            raise ValueError(f"invalid choice '{words[0]}', expected one of {', '.join(choices)}")
        return _OPTIONAL[kind](words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind) or is_remote(value),
        str_from_instance=lambda value: [str(value)],
    )


def _choices(kind: Any) -> tuple[str, ...]:
    """Words of ``Literal[...] | None``; of other types none."""
    parts = get_args(kind)
    literal = next((part for part in parts if get_origin(part) is Literal), None)
    return get_args(literal) if type(None) in parts else ()


LabelFolders = tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]]
"""Folders after one flag or several: ``--labels A B`` is ``--labels A --labels B``."""


def all_folders(given: Iterable[Iterable[Path]]) -> tuple[Path, ...]:
    """The folders of `LabelFolders`."""
    return tuple(folder for some in given for folder in some)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the settings come from that no flag gives."""

    config: Path | None = None
    """TOML file with settings that replace the preset's, such as the best.toml of a sweep."""
    preset: PresetName = DEFAULT_PRESET
    """Preset with the defaults of all settings. Without it the one that --config names, if it names one.
    photos: for people's own, in minutes; voc, coco: the paper's recipes; demo: for generated scenes."""


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """`Settings`, and what happens to an output folder that is in use."""

    overwrite: bool = False
    """Replace the content of --out."""


@dataclass(frozen=True, kw_only=True)
class SamActors(Resources):
    """`Resources` of the stages that run SAM, whose flags have other names."""

    actors: Annotated[int, tyro.conf.arg(name="sam-actors")] = 1
    """Actors, each with networks of its own. Other CPUs decode images for them.
    0 works in this process, without Ray, which starts sooner and suits few images."""
    cpus_per_actor: Annotated[float, tyro.conf.arg(name="num-cpus-per-actor")] = 1
    """CPUs, and so torch threads, of an actor; more than 0. Without actors torch decides."""
    gpus_per_actor: Annotated[float, tyro.conf.arg(name="num-gpus-per-actor")] = 0
    """GPUs of an actor, 0 or more; actors with a fraction share a GPU."""


@dataclass(frozen=True, kw_only=True)
class TrialWorkers(Workers):
    """`Workers` of one trial of a sweep."""

    workers: Annotated[int, tyro.conf.arg(name="workers-per-trial")] = 1
    """Data-parallel workers of a trial, at least 1."""


ClusterFlags = Annotated[Cluster, tyro.conf.arg(name="")]
DecodeFlags = Annotated[DecodeConfig, tyro.conf.arg(name="")]
ErrorLimitFlags = Annotated[ErrorLimit, tyro.conf.arg(name="")]
FilterFlags = Annotated[ExportFilter, tyro.conf.arg(name="")]
OutputSettingsFlags = Annotated[OutputSettings, tyro.conf.arg(name="")]
RecipeFlags = Annotated[Recipe, tyro.conf.arg(name="")]
ResourcesFlags = Annotated[Resources, tyro.conf.arg(name="")]
SamActorsFlags = Annotated[SamActors, tyro.conf.arg(name="")]
SettingsFlags = Annotated[Settings, tyro.conf.arg(name="")]
SweepFlags = Annotated[SweepOptions, tyro.conf.arg(name="")]
TrialWorkersFlags = Annotated[TrialWorkers, tyro.conf.arg(name="")]
WorkersFlags = Annotated[Workers, tyro.conf.arg(name="")]
