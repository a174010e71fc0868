"""Measurements on bad labels of the demo's scenes: how doubt finds them, and what corrections do.

The bad labels are those by one box around all peaks of a CAM.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import STAGE_HERE, TRAINING_HERE
from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.data.source import Source
from ray_wsss.export.doubtful import DoubtfulFirst
from ray_wsss.results.markdown import seed_cells, seed_titles, table
from ray_wsss.results.setup import Setup
from ray_wsss.runs.curation.agreement import mean_iou
from ray_wsss.stages.ingest import begin_ingest, finish_ingest
from ray_wsss.stages.split import CopyShard
from ray_wsss.storage import write_json

_SHARES = (0.0, 0.1, 0.3)
"""Shares of the images whose labels are corrected."""
_BAD = 0.9
"""A label is bad below this mean IoU."""


def run_box_labels(setup: Setup) -> None:
    """Labels of the demo's training scenes by one box around all peaks."""
    for seed in setup.seeds:
        demo = setup.demo(seed)
        run_label(
            override(setup.recipe, {"label.prompts": "box"}),
            dataset=demo / "train",
            classifier=demo / "classifier_cpm",
            embeddings=demo / "embeddings",
            out=_box_labels(setup, seed),
            **STAGE_HERE,
        )


def run_doubt(setup: Setup) -> None:
    """Areas under the ROC curve with which doubt finds bad labels, by kind of label and of comparison."""
    run_box_labels(setup)
    for seed in setup.seeds:
        stored = _doubt_file(setup, seed)
        if not stored.exists():
            train, box, points = setup.demo(seed) / "train", _box_labels(setup, seed), _points(setup, seed)
            pairs = {"one box": (box, points), "points": (points, box)}
            found = {
                f"{name}, {'compared' if others else 'alone'}": measure_doubt(train, labels, others)
                for name, (labels, other) in pairs.items()
                for others in ((), (other,))
            }
            stored.parent.mkdir(parents=True, exist_ok=True)
            write_json(found, stored)


def read_doubt(setup: Setup) -> dict[str, str]:
    """A row for each kind of label, alone and compared with the other kind."""
    found = [json.loads(_doubt_file(setup, seed).read_text(encoding="utf-8")) for seed in setup.seeds]
    others = {"one box": "labels by points", "points": "labels by one box"}
    rows = []
    for key in found[0]:
        name, _, way = key.partition(", ")
        of_seeds = [figures[key] for figures in found]
        bad = f"{', '.join(str(one['bad']) for one in of_seeds)} of {of_seeds[0]['labels']}"
        areas = ["-" if one["area"] is None else f"{one['area']:.2f}" for one in of_seeds]
        rows.append([name, others[name] if way == "compared" else "-", bad, *areas])
    titles = ["labels", "compared with", "bad labels", *seed_titles(setup.seeds)[: len(setup.seeds)]]
    return {"doubt": table(titles, rows)}


def measure_doubt(dataset: Path, labels: Path, others: tuple[Path, ...]) -> dict[str, Any]:
    """Numbers of labels and of bad ones, and the area under the ROC curve (None without both kinds)."""
    doubts, ious = zip(*_doubts_and_ious(dataset, labels, others))
    bad = np.asarray(ious) < _BAD
    figures: dict[str, Any] = {"labels": len(bad), "bad": int(bad.sum())}
    return figures | {"area": roc_area(np.asarray(doubts), bad) if 0 < bad.sum() < len(bad) else None}


def roc_area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive has a higher score than a negative; ties count half.

    Args:
        scores, positive: (N,) numbers, and which of them are positives; both kinds occur.
    """
    count = int(positive.sum())
    above = rankdata(scores)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(scores) - count)))


def _doubts_and_ious(dataset: Path, labels: Path, others: tuple[Path, ...]) -> Iterator[tuple[float, float]]:
    """Doubt about each label that has a mask, and its mean IoU with the ground truth."""
    classes, truths = len(DatasetMetadata.load(dataset).class_names), ShardReader(dataset)
    source, reader = DoubtfulFirst(labels, dataset, others), ShardReader(labels)
    for row, doubt in source.ranked:
        truth, label = truths.read(row, ["image_id", "mask"]), None
        label = reader.find(truth["image_id"], ["pseudo_label", "segments"])
        if doubt is None or label is None or not label["segments"]:
            continue
        iou = mean_iou(decode_mask(label["pseudo_label"], classes), decode_mask(truth["mask"], classes))
        if iou is not None:
            yield doubt, iou


def run_corrections(setup: Setup) -> None:
    """Segmenters on labels of which a share is corrected: replaced by the ground truth."""
    run_box_labels(setup)
    for seed in setup.seeds:
        for share in _SHARES:
            stored = _corrected_file(setup, seed, share)
            if not stored.exists():
                metrics = _train_corrected(setup, seed, share)
                stored.parent.mkdir(parents=True, exist_ok=True)
                write_json(metrics, stored)


def read_corrections(setup: Setup) -> dict[str, str]:
    """A row for each share of corrected images."""
    rows = []
    for share in _SHARES:
        files = [_corrected_file(setup, seed, share) for seed in setup.seeds]
        scores = [json.loads(file.read_text(encoding="utf-8"))["segmenter"]["miou"] for file in files]
        rows.append([f"{100 * share:.0f} %" if share else "none", *seed_cells(scores)])
    return {"corrections": table(["images corrected", *seed_titles(setup.seeds)], rows)}


def _train_corrected(setup: Setup, seed: int, share: float) -> dict[str, Any]:
    demo, folder = setup.demo(seed), _corrected_file(setup, seed, share).with_suffix("")
    corrections = folder / "corrections" if share else None
    if corrections is not None and not (corrections / "metadata.json").exists():
        _draw_corrections(demo / "train", corrections, share, seed)
    run_train_segmenter(
        setup.seeded(seed),
        dataset=demo / "train",
        labels=_box_labels(setup, seed),
        out=folder / "segmenter",
        corrections=corrections,
        **TRAINING_HERE,
    )
    inputs: Any = {"classifier": None, "labels": None, "segmenter": folder / "segmenter"}
    return run_evaluate(setup.recipe, dataset=demo / "held_out", **inputs, **STAGE_HERE)


def _draw_corrections(dataset: Path, out: Path, share: float, seed: int) -> None:
    """A data set of randomly drawn images of another one, with their ground truth."""
    metadata = DatasetMetadata.load(dataset)
    rows = sorted(random.Random(seed).sample(range(metadata.images), round(share * metadata.images)))
    begin_ingest(out)
    summary = CopyShard(dataset)(rows, out, 0)
    finish_ingest(out, Source(kind=metadata.source, class_names=metadata.class_names, rows=()), [summary])


def _box_labels(setup: Setup, seed: int) -> Path:
    return setup.out / "box_labels" / f"seed_{seed}"


def _points(setup: Setup, seed: int) -> Path:
    return setup.demo(seed) / "labels_train_cpm"


def _doubt_file(setup: Setup, seed: int) -> Path:
    return setup.out / "doubt" / f"seed_{seed}.json"


def _corrected_file(setup: Setup, seed: int, share: float) -> Path:
    return setup.out / "corrections" / f"seed_{seed}_{100 * share:.0f}.json"
