"""Measurements on the demo's scenes: the demo, its losses, prompts, tau, and views of its segmenter."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from ray_wsss.ablation import VARIANTS, run_ablation
from ray_wsss.benchmark.recipes import mean_and_spread
from ray_wsss.cluster.stages.compare_prompts import METRICS, compare_prompts
from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.commands.flags import OutputSettings
from ray_wsss.commands.sweep import Sweep
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import STAGE_HERE, Cluster
from ray_wsss.demo.run import run_demo
from ray_wsss.figures.prompt_figure import TITLES
from ray_wsss.results.markdown import percent, seed_cells, seed_titles, table
from ray_wsss.results.setup import Setup
from ray_wsss.storage import write_json
from ray_wsss.sweeps.trials import load_trials, rank

_DEMO_ROWS = {
    "CAM without CPM, best threshold": "cam_plain_miou",
    "CAM with CPM, best threshold": "cam_cpm_miou",
    "CAM without CPM, fixed threshold": "cam_plain_fixed_threshold_miou",
    "CAM with CPM, fixed threshold": "cam_cpm_fixed_threshold_miou",
    "pseudo labels from the CAMs without CPM": "pseudo_label_plain_miou",
    "pseudo labels from the CAMs with CPM": "pseudo_label_miou",
    "segmenter, which is given the image alone": "segmenter_miou",
}
_README_ROWS = {
    "CAM": ("cam_plain_miou", "cam_cpm_miou"),
    "pseudo labels": ("pseudo_label_plain_miou", "pseudo_label_miou"),
    "segmenter, which is given the image alone": (None, "segmenter_miou"),
}
_VIEWS: Mapping[str, dict[str, Any]] = {
    "once": {},
    "`--predict.flip`": {"predict.flip": True},
    "three scales, and flip": {"predict.flip": True, "predict.scales": (0.75, 1.0, 1.25)},
}
_TAU = "val_miou_best_threshold"


def run_demos(setup: Setup) -> None:
    """The demo with each seed."""
    for seed in setup.seeds:
        run_demo(setup.demo(seed), seed=seed, recipe=setup.recipe, scenes=setup.scenes)


def read_demos(setup: Setup) -> dict[str, str]:
    """Scores by seed, means for the README, and the seconds of each step, as medians of the seeds."""
    found = [_read(setup.demo(seed) / "metrics.json") for seed in setup.seeds]
    scores = {key: [metrics[key] for metrics in found] for key in _DEMO_ROWS.values()}
    rows = [[title, *seed_cells(scores[key])] for title, key in _DEMO_ROWS.items()]
    means = [
        [title, *(percent(mean(scores[key])) if key else "" for key in keys)]
        for title, keys in _README_ROWS.items()
    ]
    steps = found[0]["seconds_by_step"]
    seconds = [[step, *_seconds(metrics["seconds_by_step"][step] for metrics in found)] for step in steps]
    seconds.append(["**all, two at a time**", *_seconds(metrics["seconds"] for metrics in found)])
    return {
        "demo": table(["mIoU", *seed_titles(setup.seeds)], rows),
        "demo_means": table(["", "without CPM", "with CPM"], means),
        "demo_seconds": table(["seconds", *(f"seed {seed}" for seed in setup.seeds), "median"], seconds),
    }


def _seconds(seconds: Iterable[float]) -> list[str]:
    """Cells of a row: the seconds of each seed, and their median."""
    found = list(seconds)
    return [f"{each:.0f}" for each in [*found, median(found)]]


def run_views(setup: Setup) -> None:
    """The demo's segmenters, shown each scene several times."""
    for seed in setup.seeds:
        for name, changes in _VIEWS.items():
            stored = _view_file(setup, seed, name)
            if not stored.exists():
                inputs: Any = {
                    "classifier": None,
                    "labels": None,
                    "segmenter": setup.demo(seed) / "segmenter",
                }
                recipe = override(setup.recipe, changes)
                metrics = run_evaluate(recipe, dataset=setup.demo(seed) / "held_out", **inputs, **STAGE_HERE)
                stored.parent.mkdir(parents=True, exist_ok=True)
                write_json(metrics, stored)


def read_views(setup: Setup) -> dict[str, str]:
    """Scores of each way to show the segmenter a scene."""
    rows = []
    for name in _VIEWS:
        scores = [_read(_view_file(setup, seed, name))["segmenter"]["miou"] for seed in setup.seeds]
        rows.append([name, *seed_cells(scores)])
    return {"views": table(["mIoU", *seed_titles(setup.seeds)], rows)}


def _view_file(setup: Setup, seed: int, name: str) -> Path:
    return setup.out / "views" / f"seed_{seed}_{list(_VIEWS).index(name)}.json"


def run_ablations(setup: Setup) -> None:
    """The demo's classifier with each part of the loss."""
    out, recipe = setup.out / "ablation", setup.recipe
    run_ablation(out, seeds=setup.seeds, cluster=Cluster(), recipe=recipe, scenes=setup.scenes)


def read_ablations(setup: Setup) -> dict[str, str]:
    """Scores of the CAMs by loss and seed."""
    found = _read(setup.out / "ablation" / "ablation.json")
    places, rows = [found["seeds"].index(seed) for seed in setup.seeds], []
    for variant in VARIANTS:
        scores = found["miou"][variant.name]
        best, fixed = ([scores[key][place] for place in places] for key in ("cam_best", "cam_fixed"))
        spread = [percent(stdev(best))] if len(best) > 1 else [""]
        rows.append([variant.name, *seed_cells(best), *spread, percent(mean(fixed))])
    titles = ["loss", *seed_titles(setup.seeds), "standard deviation", "fixed threshold, mean"]
    return {"ablation": table(titles, rows)}


def run_prompts(setup: Setup) -> None:
    """Labels of the held-out scenes, by each kind of prompt."""
    for seed in setup.seeds:
        demo = setup.demo(seed)
        compare_prompts(
            setup.recipe,
            dataset=demo / "held_out",
            classifier=demo / "classifier_cpm",
            out=setup.out / "prompts" / f"seed_{seed}",
            **STAGE_HERE,
        )


def read_prompts(setup: Setup) -> dict[str, str]:
    """Scores of labels by kind of prompt, and of SAM's masks of several objects."""
    found = [_read(setup.out / "prompts" / f"seed_{seed}" / METRICS) for seed in setup.seeds]
    rows = []
    for kind in found[0]["miou"]:
        several = [metrics["cases"]["several objects"]["iou"].get(kind) for metrics in found]
        labels = [percent(metrics["miou"][kind]) for metrics in found]
        cells = [f"{one} ({percent(two)})" if two is not None else one for one, two in zip(labels, several)]
        rows.append([TITLES[kind], *cells])
    return {"prompts": table(["prompts", *seed_titles(setup.seeds)[: len(setup.seeds)]], rows)}


def run_tau(setup: Setup) -> None:
    """The sweep of tau, with the seeds of its space."""
    demo = setup.demo(setup.seeds[0])
    Sweep(
        space=setup.tau_space,
        dataset=demo / "train",
        validation=demo / "held_out",
        out=_tau_sweep(setup),
        embeddings=demo / "embeddings",
        settings=OutputSettings(preset="demo"),
        classifier=setup.recipe.classifier,
        cpm=setup.recipe.cpm,
        sam=setup.recipe.sam,
    ).run()


def read_tau(setup: Setup) -> dict[str, str]:
    """Score of the CAMs by tau."""
    ranked = rank(load_trials(_tau_sweep(setup)), _TAU, "max")
    if not ranked or not all(configuration.complete for configuration in ranked):
        raise ValueError("the sweep has not come to its end")
    by_tau = sorted(ranked, key=lambda configuration: configuration.params["cpm.tau"])
    scores = [[score for t in c.trials if (score := t.score(_TAU)) is not None] for c in by_tau]
    rows = [
        [f"{configuration.params['cpm.tau']:g}", mean_and_spread(values)]
        for configuration, values in zip(by_tau, scores)
    ]
    return {"tau": table(["tau", "CAM, best threshold"], rows)}


def _tau_sweep(setup: Setup) -> Path:
    """Folder of the sweep; beside it stands ``runs.json``, which a sweep would not take for its own."""
    return setup.out / "tau" / "sweep"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
