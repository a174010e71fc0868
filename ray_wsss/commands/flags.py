"""Flags that several commands have."""

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


ConfigFile = Path | None
ClusterFlags = Annotated[Cluster, tyro.conf.arg(name="")]
ResourcesFlags = Annotated[Resources, tyro.conf.arg(name="")]
RecipeFlags = Annotated[Recipe, tyro.conf.arg(name="")]
WorkersFlags = Annotated[Workers, tyro.conf.arg(name="")]
