"""The demo: the whole pipeline on generated scenes, offline, with a picture at the end.

The classifier is trained twice with the same seed and number of iterations, without CPM and with it, so
that the two CAMs show what CPM does.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.cluster.stages.ingest import run_ingest
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.data.coco import read_coco
from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.scene_coco import write_scene_coco
from ray_wsss.figures.overview import OverviewRow, save_overview
from ray_wsss.models.store import load_classifier
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.manifest import Output
from ray_wsss.stages.cams import cams_of
from ray_wsss.stages.predict import Predictor
from ray_wsss.storage import write_json

log = logging.getLogger(__name__)

TRAIN_SCENES = 400
HELD_OUT_SCENES = 150
# Seeds of scenes from here on belong neither to the tiny SAM's training scenes (below 2**20) nor to the
# scenes on which the demo's settings were chosen.
FIRST_SEED = 10_000_000
_IN_PROCESS = Workers(workers=0)
_ACTORS = Resources(actors=2)


def run_demo(
    out: Path, *, seed: int = 0, cluster: Cluster | None = None, recipe: Recipe | None = None
) -> dict[str, Any]:
    """Run the demo into ``out``; running it again resumes it.

    Writes ``metrics.json`` and ``overview.png`` beside the folders of all stages.

    Returns:
        The content of ``metrics.json``.
    """
    started = time.perf_counter()
    cluster = cluster or Cluster()
    recipe = _seeded(recipe or PRESETS["demo"], seed)
    torch.set_num_threads(2)
    output = Output(out, "demo", {"seed": seed})
    output.begin()
    with ray_session(cluster.address, verbose=cluster.verbose):
        _say("1/6", f"{TRAIN_SCENES} training scenes, {HELD_OUT_SCENES} held-out scenes")
        make_scenes(out, seed, cluster)
        for step, name, enabled in (("2/6", "plain", False), ("3/6", "cpm", True)):
            _say(step, f"classifier {'with' if enabled else 'without'} CPM")
            run_train_classifier(
                replace(recipe, cpm=replace(recipe.cpm, enabled=enabled)),
                dataset=out / "train",
                out=out / f"classifier_{name}",
                workers=_IN_PROCESS,
                cluster=cluster,
            )
        _say("4/6", "pseudo labels")
        for split, name in (("held_out", "plain"), ("held_out", "cpm"), ("train", "cpm")):
            report = run_label(
                recipe,
                dataset=out / split,
                classifier=out / f"classifier_{name}",
                out=out / f"labels_{split}_{name}",
                resources=_ACTORS,
                cluster=cluster,
            )
            log.info("%s scenes, CAMs of the %s classifier: %d class masks", split, name, report.total.masks)
        _say("5/6", "segmenter on the pseudo labels")
        run_train_segmenter(
            recipe,
            dataset=out / "train",
            labels=out / "labels_train_cpm",
            out=out / "segmenter",
            workers=_IN_PROCESS,
            cluster=cluster,
        )
        _say("6/6", "evaluation on the held-out scenes")
        metrics = _evaluate(out, recipe, cluster)
    save_overview(
        _overview_rows(out, recipe),
        load_classifier(out / "classifier_cpm")[1].class_names,
        out / "overview.png",
    )
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    write_json(metrics, out / "metrics.json")
    output.finish()
    return metrics


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return override(recipe, {"classifier.seed": seed, "segmenter.seed": seed})


def _say(step: str, what: str) -> None:
    log.info("[%s] %s", step, what)


def make_scenes(
    out: Path, seed: int, cluster: Cluster, train: int = TRAIN_SCENES, held_out: int = HELD_OUT_SCENES
) -> None:
    """Make the data sets ``out/train`` and ``out/held_out``; no two values of ``seed`` share a scene."""
    first = FIRST_SEED + seed * 10_000
    splits = {
        "train": range(first, first + train),
        "held_out": range(first + train, first + train + held_out),
    }
    for name, seeds in splits.items():
        if (out / name / "metadata.json").exists():
            continue
        images, annotations = write_scene_coco(out / "coco", name, seeds)
        source = read_coco(images, annotations)
        run_ingest(source, out=out / name, max_errors=0, cluster=cluster)


def _evaluate(out: Path, recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    common = {"recipe": recipe, "dataset": out / "held_out", "resources": _ACTORS, "cluster": cluster}
    plain = run_evaluate(
        **common, classifier=out / "classifier_plain", labels=out / "labels_held_out_plain", segmenter=None
    )
    cpm = run_evaluate(
        **common,
        classifier=out / "classifier_cpm",
        labels=out / "labels_held_out_cpm",
        segmenter=out / "segmenter",
    )
    return {
        "cam_plain_miou": plain["cam_best"]["miou"],
        "cam_cpm_miou": cpm["cam_best"]["miou"],
        "cam_plain_fixed_threshold_miou": plain["cam_fixed"]["miou"],
        "cam_cpm_fixed_threshold_miou": cpm["cam_fixed"]["miou"],
        "pseudo_label_plain_miou": plain["pseudo_label"]["miou"],
        "pseudo_label_miou": cpm["pseudo_label"]["miou"],
        "segmenter_miou": cpm["segmenter"]["miou"],
        "details": {"plain": plain, "cpm": cpm},
    }


def demo_table(metrics: dict[str, Any]) -> Table:
    """The mIoUs of `run_demo` as a table."""
    table = Table(title="mIoU in % on held-out scenes")
    for column in ("", "without CPM", "with CPM"):
        table.add_column(column, justify="left" if not column else "right")
    for title, plain, cpm in (
        ("CAM, best threshold", "cam_plain_miou", "cam_cpm_miou"),
        ("CAM, fixed threshold", "cam_plain_fixed_threshold_miou", "cam_cpm_fixed_threshold_miou"),
        ("pseudo labels", "pseudo_label_plain_miou", "pseudo_label_miou"),
        ("segmenter", None, "segmenter_miou"),
    ):
        table.add_row(title, *[f"{100 * metrics[k]:.1f}" if k else "" for k in (plain, cpm)])
    return table


def _overview_rows(out: Path, recipe: Recipe, count: int = 6) -> list[OverviewRow]:
    """Rows for the ``count`` held-out scenes with the most objects."""
    dataset, labels = ShardReader(out / "held_out"), ShardReader(out / "labels_held_out_cpm")
    models = {
        title: (load_classifier(folder)[0], with_classifier_side(recipe.label, folder))
        for title, folder in (("CAM", out / "classifier_plain"), ("CAM with CPM", out / "classifier_cpm"))
    }
    segmenter = Predictor.load(out / "segmenter", recipe.predict)
    by_objects = sorted(
        range(len(dataset)), key=lambda i: -len(dataset.read(i, ["image_labels"])["image_labels"] or ())
    )
    rows = []
    for i in by_objects[:count]:
        record = dataset.read(i)
        label = labels.read(labels.index_of(record["image_id"]))
        pixels = decode_image(record["image"], record["orientation"])
        cams = {
            title: cams_of(model, [pixels], [record["image_labels"]], config).cam.amax(0).numpy()
            for title, (model, config) in models.items()
        }
        rows.append(
            OverviewRow(
                image=pixels,
                cams=cams,
                points=[(s["class_index"], *xy) for s in label["segments"] for xy in s["points_xy"]],
                label_maps={
                    "pseudo label": decode_mask(label["pseudo_label"]),
                    "segmenter": segmenter(pixels),
                    "ground truth": decode_mask(record["mask"]),
                },
            )
        )
    return rows
