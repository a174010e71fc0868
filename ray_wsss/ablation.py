"""Effect of each part of the classifier's loss: the demo's classifier with and without it, several seeds."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.table import Table

from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.cluster.stages.segment_everything import run_segment_everything
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.demo.scenes import HELD_OUT_SCENES, TRAIN_SCENES, make_scenes
from ray_wsss.storage import write_json

log = logging.getLogger(__name__)


class Variant:
    """One choice of the parts of the classifier's loss.

    Args:
        name: name in the log and the table.
        ssc, cpm: whether the loss has SSC, and CPM.
        view: images that CPM's SAM sees, as ``cpm.view``.
    """

    def __init__(self, name: str, *, ssc: bool = False, cpm: bool = False, view: str = "crop") -> None:
        self.name, self.ssc, self.view = name, ssc, view
        self.changes = {"cpm.enabled": cpm, "cpm.view": view}

    @property
    def folder(self) -> str:
        """Name of the variant's output folder."""
        return self.name.replace(" + ", "_").replace(", view ", "_")


VARIANTS = (
    Variant("cls"),
    Variant("cls + SSC", ssc=True),
    Variant("cls + CPM", cpm=True),
    Variant("cls + SSC + CPM", ssc=True, cpm=True),
    Variant("cls + CPM, view image", cpm=True, view="image"),
    Variant("cls + SSC + CPM, view image", ssc=True, cpm=True, view="image"),
)


def run_ablation(
    out: Path,
    *,
    seeds: Sequence[int],
    cluster: Cluster,
    recipe: Recipe | None = None,
    scenes: tuple[int, int] = (TRAIN_SCENES, HELD_OUT_SCENES),
) -> dict[str, Any]:
    """Train every variant with every seed and measure its CAMs on held-out scenes.

    Running it again resumes it.

    Args:
        recipe: recipe of the classifier, by default the demo's.
        scenes: numbers of training scenes and of held-out scenes.

    Returns:
        For each variant ``cam_best`` and ``cam_fixed``: the mIoU of each seed in [0, 1] at the best
        background threshold and at the fixed one. Also written to ``ablation.json``.
    """
    torch.set_num_threads(1)  # as in the steps of the demo, whose figures are then the same
    results: dict[str, Any] = {v.name: {"cam_best": [], "cam_fixed": []} for v in VARIANTS}
    with ray_session(cluster.address, verbose=cluster.verbose):
        for seed in seeds:
            seeded = override(recipe or PRESETS["demo"], {"classifier.seed": seed})
            measured = _run_seed(out / f"seed_{seed}", seed, seeded, cluster, scenes)
            for variant, metrics in zip(VARIANTS, measured):
                for name, values in results[variant.name].items():
                    values.append(metrics[name]["miou"])
    write_json({"seeds": list(seeds), "miou": results}, out / "ablation.json")
    return results


def _run_seed(
    out: Path, seed: int, recipe: Recipe, cluster: Cluster, scenes: tuple[int, int]
) -> list[dict[str, Any]]:
    make_scenes(out, seed, *scenes)
    common = {"dataset": out / "train", "resources": Resources(actors=2), "cluster": cluster}
    run_segment_everything(recipe, out=out / "segments", **common)
    run_embed(recipe, out=out / "embeddings", **common)
    return [_run_variant(variant, out, override(recipe, variant.changes), cluster) for variant in VARIANTS]


def _run_variant(variant: Variant, out: Path, recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    log.info("%s: %s", out.name, variant.name)
    folder = out / variant.folder
    run_train_classifier(
        recipe,
        dataset=out / "train",
        out=folder,
        workers=Workers(workers=0),
        cluster=cluster,
        segments=out / "segments" if variant.ssc else None,
        embeddings=out / "embeddings" if variant.view == "image" else None,
    )
    figures = folder / "held_out.json"
    if not figures.exists():
        metrics = run_evaluate(
            recipe,
            dataset=out / "held_out",
            classifier=folder,
            labels=None,
            segmenter=None,
            resources=Resources(actors=2),
            cluster=cluster,
        )
        write_json(metrics, figures)
    return json.loads(figures.read_text(encoding="utf-8"))


def ablation_table(results: dict[str, Any], seeds: Sequence[int]) -> Table:
    """Table of mIoUs in %: each seed at its best threshold, and means over the seeds."""
    table = Table(title="mIoU of the CAMs in % on held-out scenes")
    table.add_column("loss")
    for title in (*[f"seed {seed}" for seed in seeds], "mean", "deviation", "mean, fixed threshold"):
        table.add_column(title, justify="right")
    for name, values in results.items():
        best, fixed = ([100 * v for v in values[key]] for key in ("cam_best", "cam_fixed"))
        spread = f"{stdev(best):.1f}" if len(best) > 1 else ""
        cells = [*[f"{v:.1f}" for v in best], f"{mean(best):.1f}", spread, f"{mean(fixed):.1f}"]
        table.add_row(name, *cells)
    return table
