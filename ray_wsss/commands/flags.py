"""Flags that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from ray_wsss.cluster.map import Resources
from ray_wsss.cluster.session import Cluster
from ray_wsss.cluster.train import Workers

PresetName = Literal["voc", "coco", "demo"]
ConfigFile = Path | None
ClusterFlags = Annotated[Cluster, tyro.conf.arg(name="")]
ResourcesFlags = Annotated[Resources, tyro.conf.arg(name="")]
WorkersFlags = Annotated[Workers, tyro.conf.arg(name="")]
