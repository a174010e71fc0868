"""The command that shows the whole pipeline."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from ray_wsss.commands.flags import ClusterFlags
from ray_wsss.config.resources import Cluster
from ray_wsss.config.settings_file import load_recipe
from ray_wsss.errors import UserError
from ray_wsss.storage import lies_in

_ENDING = """
picture  {out}/overview.png
report   {out}/report.html (open it in a browser)
figures  {out}/metrics.json, after {minutes:.1f} minutes

Next, {next}:

    ray-wsss run-all {source} --out runs/photos
"""
"""Text that ends the demo."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole pipeline on generated scenes, or on your photographs, and show what each step makes.

    It works offline. With scenes it takes about three minutes on two CPU cores.
    """

    out: Path = Path("demo")
    """Folder for everything the demo makes; overview.png shows the results, first_look.png early ones."""
    photos: Path | None = None
    """Photographs instead of scenes: a folder with a folder of them for each class, or COCO's JSON beside
    its images, or a folder that holds these. Of more than 300 it takes 300, and holds out a quarter.
    Masks are used for scores alone."""
    seed: int = 0
    """Seed of scenes, weights and order, 0 or more."""
    config: Path | None = None
    """TOML file with settings that replace the demo's, such as the best.toml of a sweep."""
    cluster: ClusterFlags = field(default_factory=Cluster)

    def run(self) -> None:
        if self.photos is None:
            self._run_on_scenes()
        else:
            self._run_on_photos(self.photos)

    def _run_on_scenes(self) -> None:
        from rich.console import Console

        from ray_wsss.demo.metrics import demo_table
        from ray_wsss.demo.run import run_demo

        recipe = load_recipe(self.config, "demo") if self.config is not None else None
        metrics = run_demo(self.out, seed=self.seed, cluster=self.cluster, recipe=recipe)
        Console().print(demo_table(metrics))
        what = "your own images, in a folder for each class (photos/cat/*.jpg, photos/dog/*.jpg, ...)"
        self._print_ending(metrics["seconds"], what, "--folder photos")

    def _run_on_photos(self, photos: Path) -> None:
        from rich.console import Console

        from ray_wsss.demo.metrics import demo_table
        from ray_wsss.demo.photos import find_coco
        from ray_wsss.demo.run_on_photos import run_photo_demo

        if lies_in(self.out, photos):
            raise UserError(
                f"--out {self.out} lies in --photos {photos}; expected a folder apart from the images"
            )
        coco = find_coco(photos)
        recipe = load_recipe(self.config, "photos") if self.config is not None else None
        metrics = run_photo_demo(photos, self.out, seed=self.seed, cluster=self.cluster, recipe=recipe)
        if "details" in metrics:
            Console().print(demo_table(metrics))
        else:
            print("no scores, since the photographs have no masks")
        source = ["--folder", photos] if coco is None else ["--coco", coco[1], "--images", coco[0]]
        self._print_ending(metrics["seconds"], "masks of all of them", shlex.join(map(str, source)))

    def _print_ending(self, seconds: float, what: str, source: str) -> None:
        print(_ENDING.format(out=self.out, minutes=seconds / 60, next=what, source=source))
