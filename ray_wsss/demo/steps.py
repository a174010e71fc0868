"""The work of the demo's steps, each a stage of the pipeline in the process that runs the step."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.config.report import ReportOptions
from ray_wsss.config.resources import STAGE_HERE, TRAINING_HERE
from ray_wsss.demo import pictures
from ray_wsss.demo.metrics import metrics_of
from ray_wsss.demo.settings import DemoSettings
from ray_wsss.storage import write_json


def embed(demo: DemoSettings) -> None:
    """SAM's embeddings of the images to train on, once for the training and the labels."""
    run_embed(demo.recipe, dataset=demo.train, out=demo.out / "embeddings", **STAGE_HERE)


def warm_up(demo: DemoSettings) -> None:
    """The iterations before CPM starts, which are the same for both classifiers."""
    _train_plain(demo, warm_up_only=True)


def train_plain(demo: DemoSettings) -> None:
    """The rest of the classifier without CPM, and a first look at its CAMs."""
    _train_plain(demo)
    pictures.save_first_look(demo, with_cams=True)


def train_cpm(demo: DemoSettings) -> None:
    """The rest of the classifier with CPM, with the same seed and number of iterations."""
    run_train_classifier(
        demo.recipe,
        dataset=demo.train,
        out=demo.classifier("cpm"),
        embeddings=demo.embeddings,
        warmed_up=demo.classifier("plain"),
        **TRAINING_HERE,
    )


def label_train(demo: DemoSettings) -> None:
    """Pseudo labels of the images to train on, for the segmenter."""
    _label(demo, "train", "cpm", demo.embeddings)


def train_segmenter(demo: DemoSettings) -> None:
    """The segmenter."""
    labels = demo.labels("train", "cpm")
    run_train_segmenter(
        demo.recipe, dataset=demo.train, labels=labels, out=demo.out / "segmenter", **TRAINING_HERE
    )


def measure_plain(demo: DemoSettings) -> dict[str, Any]:
    """Pseudo labels of the held-out images without CPM, and the scores of CAMs and labels."""
    return _measure(demo, "plain") if demo.has_masks else {}


def measure_cpm(demo: DemoSettings) -> dict[str, Any]:
    """Pseudo labels of the held-out images with CPM, and the scores of CAMs and labels."""
    return _measure(demo, "cpm")


def measure_segmenter(demo: DemoSettings) -> dict[str, Any]:
    """The scores of the segmenter."""
    if not demo.has_masks:
        return {}
    inputs: Any = {"classifier": None, "labels": None, "segmenter": demo.out / "segmenter"}
    return run_evaluate(demo.recipe, dataset=demo.held_out, **inputs, **STAGE_HERE)


def draw_overview(demo: DemoSettings) -> None:
    """The picture of all stages."""
    pictures.save_overview_of(demo)


def report(demo: DemoSettings, found: Mapping[str, Any]) -> None:
    """The report, which shows the metrics too."""
    from ray_wsss.report.find_run import find_run
    from ray_wsss.report.write_report import write_report

    metrics = metrics_of(found)
    if metrics:
        write_json(metrics, demo.out / "metrics.json")
    title, run = demo.out.name, find_run(demo.out, {})
    write_report(run, title, str(demo.out), demo.out / "report.html", ReportOptions())


def _train_plain(demo: DemoSettings, *, warm_up_only: bool = False) -> None:
    recipe = replace(demo.recipe, cpm=replace(demo.recipe.cpm, enabled=False))
    run_train_classifier(
        recipe,
        dataset=demo.train,
        out=demo.classifier("plain"),
        warm_up_only=warm_up_only,
        **TRAINING_HERE,
    )


def _measure(demo: DemoSettings, name: str) -> dict[str, Any]:
    _label(demo, "held_out", name, None)
    if not demo.has_masks:
        return {}
    inputs: Any = {"classifier": demo.classifier(name), "labels": demo.labels("held_out", name)}
    return run_evaluate(demo.recipe, dataset=demo.held_out, **inputs, segmenter=None, **STAGE_HERE)


def _label(demo: DemoSettings, split: str, name: str, embeddings: Path | None) -> None:
    run_label(
        demo.recipe,
        dataset=demo.out / split,
        classifier=demo.classifier(name),
        out=demo.labels(split, name),
        embeddings=embeddings,
        **STAGE_HERE,
    )
