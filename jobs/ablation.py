"""Effect of SSC and CPM on the CAMs, on the demo's generated scenes; works offline.

    python jobs/ablation.py --out ablation --seeds 0 1 2

It trains the demo's classifier six times per seed: with each part of the loss, and with CPM on crops and on
the embedding of the whole image. A seed takes about 10 minutes on 2 CPU cores. Running it again resumes it.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ray_wsss.ablation import ablation_table, run_ablation
from ray_wsss.commands.flags import PARSERS
from ray_wsss.config.resources import Cluster
from ray_wsss.console import logged_to
from ray_wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Train and measure all variants of the loss."""

    out: Path = Path("ablation")
    """Folder for all outputs; the figures are in its file ablation.json."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each one makes its own scenes, initial weights and order of images."""
    cluster: Annotated[Cluster, tyro.conf.arg(name="")] = field(default_factory=Cluster)


def main() -> int:
    """Run the ablation and print its table."""
    command = tyro.cli(Ablation, prog="ablation.py", description=__doc__, registry=PARSERS)
    try:
        with logged_to():
            results = run_ablation(command.out, seeds=command.seeds, cluster=command.cluster)
    except UserError as error:
        print(f"ablation.py: {error}", file=sys.stderr)
        return 1
    Console().print(ablation_table(results, command.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
