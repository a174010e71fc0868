"""The command that shows the whole pipeline."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.commands.flags import ClusterFlags
from ray_wsss.config.resources import Cluster
from ray_wsss.config.settings_file import load_recipe

_ENDING = """
picture  {out}/overview.png
report   {out}/report.html (open it in a browser)
figures  {out}/metrics.json, after {minutes:.1f} minutes

Next, your own images, in a folder for each class (photos/cat/*.jpg, photos/dog/*.jpg, ...):

    ray-wsss run-all --folder photos --out runs/photos
"""
"""Text that ends the demo."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole pipeline on generated scenes, offline: about four minutes on two CPU cores."""

    out: Path = Path("demo")
    """Folder for everything the demo makes; overview.png shows the results, first_look.png early ones."""
    seed: int = 0
    """Seed of scenes, weights and order, 0 or more."""
    config: Path | None = None
    """TOML file with settings that replace the demo's, such as the best.toml of a sweep."""
    cluster: ClusterFlags = field(default_factory=Cluster)

    def run(self) -> None:
        from rich.console import Console

        from ray_wsss.demo.metrics import demo_table
        from ray_wsss.demo.run import run_demo

        recipe = load_recipe(self.config, "demo") if self.config is not None else None
        metrics = run_demo(self.out, seed=self.seed, cluster=self.cluster, recipe=recipe)
        Console().print(demo_table(metrics))
        print(_ENDING.format(out=self.out, minutes=metrics["seconds"] / 60))
