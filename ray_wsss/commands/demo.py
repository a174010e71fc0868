"""The command that shows the whole pipeline."""

from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.commands.flags import ClusterFlags
from ray_wsss.config.resources import Cluster
from ray_wsss.config.settings_file import load_recipe


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole pipeline on generated scenes, offline: about five minutes on two CPU cores."""

    out: Path = Path("demo")
    """Folder for everything the demo makes; overview.png shows the results."""
    seed: int = 0
    """Seed of scenes, weights and order, 0 or more."""
    config: Path | None = None
    """TOML file with settings that replace the demo's, such as the best.toml of a sweep."""
    cluster: ClusterFlags = field(default_factory=Cluster)

    def run(self) -> None:
        from rich.console import Console

        from ray_wsss.demo import demo_table, run_demo

        recipe = load_recipe(self.config, "demo") if self.config is not None else None
        metrics = run_demo(self.out, seed=self.seed, cluster=self.cluster, recipe=recipe)
        Console().print(demo_table(metrics))
        print(f"pictures in {self.out / 'overview.png'}, figures in {self.out / 'metrics.json'}")
