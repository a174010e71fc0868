"""What a report is collected from: folders, figures of runs, metrics, images to choose."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from ray_wsss.config import LabelConfig
from ray_wsss.figures.metrics_table import metrics_table
from ray_wsss.ops.metrics import ConfusionMatrix
from ray_wsss.report.find_run import Metrics, StageFolder, find_run
from ray_wsss.report.gallery_source import choose_images
from ray_wsss.report.history import describe_stage, describe_training, describe_work
from ray_wsss.report.html import Report, render_report
from ray_wsss.report.metrics import make_confusions, make_table, measured
from ray_wsss.report.survey import Survey, SurveyedImage
from ray_wsss.report.write_report import _label_config
from ray_wsss.runs.curation.agreement import mean_iou
from ray_wsss.runs.manifest import NewerFormatError
from ray_wsss.stages.evaluate import describe_confusion


def folder(runs: list[dict[str, Any]], **changes: Any) -> StageFolder:
    given: dict[str, Any] = {
        "path": Path("runs/labels"),
        "stage": "label",
        "state": "finished",
        "version": "0.1.0",
        "settings": {"label.tau": 0.5, "label.scales": [0.5, 1.0], "classifier.seed": 3},
    }
    return StageFolder(runs=runs, **(given | changes))


def run(done: int, before: int, seconds: float | None = 10.0) -> dict[str, Any]:
    return {
        "began": "2026-01-02T03:04:05+00:00",
        "seconds": seconds,
        "machine": {"system": "Linux", "processor": "P", "cores": 2, "memory_gib": 4.0},
        "cluster": {"nodes": 2, "cpus": 8.0, "gpus": 1.0, "accelerators": ["H100"]},
        "resources": {"actors": 2, "cpus_per_actor": 0.5},
        "figures": {
            "images": before + done,
            "errors": 0,
            "prompts": 9,
            "masks": 8,
            "done_before": before,
            "seconds": {"cam": 6.0, "encode": 2.0, "decode": 4.0, "wait": 0.0},
            "startup_s": 1.0,
            "work_s": 5.0,
            "images_per_s": done / 5,
        },
    }


def test_the_gallery_has_the_cams_of_the_labels() -> None:
    """Also of labels of version 0.1, whose classifier saw images at the size of the labels."""
    made_with = {"label.tau": 0.4, "label.scales": [0.5, 1.0], "label.max_side_px": 700}
    old = _label_config(folder([], settings=made_with))
    assert old == LabelConfig(tau=0.4, scales=(0.5, 1.0), max_side_px=700, classifier_side_px=700)
    new = _label_config(folder([], settings=made_with | {"label.classifier_side_px": 112}))
    assert new == replace(old, classifier_side_px=112)
    unlimited = _label_config(folder([], settings=made_with | {"label.classifier_side_px": None}))
    assert unlimited == replace(old, classifier_side_px=None)
    assert _label_config(None) == LabelConfig()


def test_speed_is_that_of_the_run_that_did_most() -> None:
    row = describe_work(folder([run(40, 0), run(5, 40)]))
    assert row is not None
    assert row.counts == {"images": 45, "prompts": 9, "masks": 8, "errors": 0}
    assert row.speed.startswith("8.0 images/s in 5 s")
    phases = {phase.name: phase for phase in row.phases}
    assert phases["cam"].share == 6 / 8
    assert phases["cam"].images_per_s == pytest.approx(40 / 6)
    assert phases["decode"].share is None
    assert phases["wait"].images_per_s == 0
    assert describe_work(folder([])) is None


def test_a_stage_says_where_it_ran_and_how_often() -> None:
    row = describe_stage(folder([run(1, 0, None), run(1, 1)]))
    assert row.runs == "2 runs, 1 of them cut off"
    assert (row.took, row.began, row.seeds) == ("10 s", "2026-01-02 03:04 UTC", "3")
    assert row.settings["label.scales"] == "0.5, 1.0"
    assert row.where[0] == "2 cores of P, 4 GiB, Linux"
    assert row.where[1] == "Ray cluster: 2 nodes, 8 CPUs, 1 GPUs (H100)"
    assert row.where[2] == "actors: 2, cpus per actor: 0.5"
    old = describe_stage(folder([]))
    assert (old.took, old.began, list(old.where)) == ("", "", [])


@pytest.mark.parametrize(
    ("commit", "told"),
    [
        ("26b4046a0123456789abcdef0123456789abcdef+", "0.2.0.dev0 (26b4046a+)"),
        ("26b4046a0123456789abcdef0123456789abcdef", "0.2.0.dev0 (26b4046a)"),
        (None, "0.2.0.dev0"),
    ],
)
def test_the_version_of_a_stage_has_its_commit(commit: str | None, told: str) -> None:
    versions = {"python": "3.11.9", "ray-wsss": "0.2.0.dev0", "torch": "2.9.0"}
    row = describe_stage(folder([run(1, 0) | {"versions": versions, "commit": commit}]))
    assert row.versions == versions | {"ray-wsss": told}
    assert versions["ray-wsss"] == "0.2.0.dev0"


def test_records_of_earlier_versions_have_no_commit() -> None:
    versions = {"ray-wsss": "0.1.0"}
    assert describe_stage(folder([run(1, 0) | {"versions": versions}])).versions == versions
    assert describe_stage(folder([run(1, 0)])).versions == describe_stage(folder([])).versions == {}


def write_manifest(path: Path, stage: str, **changes: Any) -> Path:
    path.mkdir(parents=True)
    content = {"stage": stage, "state": "finished", "ray_wsss": "9.0", "depends_on": {}} | changes
    (path / "manifest.json").write_text(json.dumps(content))
    return path


def test_a_given_folder_of_a_newer_version_is_an_error(tmp_path: Path) -> None:
    labels = write_manifest(tmp_path / "labels", "label", format=99)
    with pytest.raises(NewerFormatError, match=r"labels was written by ray-wsss 9\.0 in format 99"):
        find_run(None, {"labels": labels})


def test_folders_of_a_newer_version_in_a_run_are_missing(tmp_path: Path) -> None:
    newer = write_manifest(tmp_path / "labels", "label", format=99)
    with pytest.raises(NewerFormatError, match="in format 99"):  # with nothing else to report on
        find_run(tmp_path, {})
    write_manifest(tmp_path / "segmenter", "train-segmenter")
    broken = tmp_path / "web"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")  # another program's
    found = find_run(tmp_path, {})
    assert [stage.stage for stage in found.stages] == ["train-segmenter"]
    (sentence,) = found.missing
    assert sentence.startswith(f"{newer} was written by ray-wsss 9.0 in format 99")
    assert sentence.endswith("update ray-wsss.")


def test_curves_of_an_unfinished_training_are_its_last_checkpoints(tmp_path: Path) -> None:
    for iteration in (2, 4):
        checkpoint = tmp_path / "checkpoints" / f"checkpoint_{iteration:08d}"
        checkpoint.mkdir(parents=True)
        history = [{"iteration": k, "loss_cls": 1 / k} for k in range(1, iteration + 1)]
        (checkpoint / "progress.json").write_text(str({"history": history}).replace("'", '"'))
    training = describe_training(folder([], path=tmp_path, state="unfinished"))
    assert training is not None
    assert training.note == "4 iterations, unfinished"
    assert [chart.last for chart in training.charts] == ["0.25"]
    assert describe_training(folder([], path=tmp_path / "none")) is None


def surveyed() -> Survey:
    rng = np.random.default_rng(0)
    survey = Survey(class_names=("a", "b"), compared=2)
    maps = torch.from_numpy(rng.integers(0, 3, (2, 20, 20)).astype(np.uint8))
    survey.confusion = ConfusionMatrix.from_labels(maps[0], maps[1], 3)
    return survey


def test_what_evaluate_measured_as_well_is_shown_once() -> None:
    survey = surveyed()
    assert survey.confusion is not None
    entry = {"miou": survey.confusion.miou(), "images": 2, "iou": {"background": 0.5, "a": None, "b": 0.1}}
    metrics = Metrics(path=Path("m.json"), content={"details": {"cpm": {"pseudo_label": entry}}, "x_miou": 1})
    ((title, note, figures),) = measured([metrics], survey, "Labels")
    assert (title, note) == ("cpm", "m.json")
    assert figures["pseudo_label"]["confusion"] == describe_confusion(
        survey.confusion, ("background", "a", "b")
    )
    table = make_table(title, note, figures)
    assert [name for name, _ in table.rows] == ["background", "b"]
    entry["miou"] += 0.01
    assert measured([metrics], survey, "Labels")[0][0].startswith("Labels")


def test_confused_pairs_are_the_largest_cells_off_the_diagonal() -> None:
    survey = surveyed()
    assert survey.confusion is not None
    counts = survey.confusion.counts.numpy().copy()
    ((_, _, figures),) = measured([], survey, "Labels")
    (confusion,) = make_confusions("", figures)
    names = ["background", "a", "b"]
    sizes = counts.sum(1)
    wrong = {(names[i], names[j]): counts[i, j] for i in range(3) for j in range(3) if i != j}
    assert {(p.truth, p.prediction): p.pixels for p in confusion.pairs} == wrong
    assert [p.pixels for p in confusion.pairs] == sorted(wrong.values(), reverse=True)
    first = confusion.pairs[0]
    assert first.share == first.pixels / sizes[names.index(first.truth)]
    assert confusion.wrong == pytest.approx(1 - np.trace(counts) / counts.sum())


@pytest.mark.parametrize("key", ["iou", "doubt"])
def test_choice_of_images(key: str) -> None:
    rng = np.random.default_rng(1)
    values = [None if k % 5 == 0 else float(v) for k, v in enumerate(rng.random(50))]
    images = [SurveyedImage(row=k, image_id=str(k), **{key: v}) for k, v in enumerate(values)]
    chosen = choose_images(images, 15)
    groups = {g: {c.image.row for c in chosen if c.group == g} for g in ("best", "worst", "random")}
    assert [len(rows) for rows in groups.values()] == [5, 5, 5]
    sign = 1 if key == "iou" else -1
    known = sorted((sign * v, k) for k, v in enumerate(values) if v is not None)
    assert groups["worst"] == {k for _, k in known[:5]}
    assert groups["best"] == {k for _, k in known[-5:]}
    assert [c.image.row for c in chosen] == sorted(c.image.row for c in chosen)
    assert choose_images(images, 15) == chosen
    assert choose_images(images, 15, seed=1) != chosen
    assert {c.group for c in choose_images(images, None)} == {""}
    assert len(choose_images(images[:3], 60)) == 3


def test_mean_iou_of_an_image_leaves_the_background_out() -> None:
    truth = np.array([[0, 1, 1, 255], [2, 2, 0, 0]], np.uint8)
    label = np.array([[0, 1, 0, 3], [2, 2, 0, 0]], np.uint8)
    assert mean_iou(label, truth) == (1 / 2 + 1) / 2
    assert mean_iou(np.zeros_like(truth), np.zeros_like(truth)) is None
    with pytest.raises(ValueError, match="its label map is 4x2 pixels, its ground truth 2x4"):
        mean_iou(label, truth.T.copy())


def test_long_tables_scroll_and_begin_with_the_worst_class() -> None:
    iou = {f"class {k}": (k * 37 % 1000) / 1000 for k in range(1000)}
    figures: dict[str, Any] = {"pseudo_label": {"miou": 0.5, "images": 3, "iou": iou}}
    table = make_table("t", "", figures)
    assert [name for name, _ in table.rows] == sorted(iou, key=lambda name: iou[name])
    assert table.note == "worst class first"
    report = Report(title="t", source="", made="", tables=[table])
    page = "".join(render_report(report, iter(()), 64))
    assert 'class="scroll long"' in page
    assert all(f">{name}<" in page for name in iou)
    assert len(page) < 200_000
    figures["pseudo_label"]["iou"] = dict(list(iou.items())[:9])
    few = make_table("t", "", figures)
    assert few.note == ""
    assert [name for name, _ in few.rows] == list(iou)[:9]
    assert "scroll long" not in "".join(render_report(replace(report, tables=[few]), iter(()), 64))


def test_the_terminal_lists_the_worst_and_the_best_of_many_classes() -> None:
    iou = {f"class {k}": k / 1000 for k in range(999, -1, -1)}
    console = Console(width=80, file=io.StringIO())
    console.print(metrics_table({"segmenter": {"miou": 0.5, "images": 3, "iou": iou}}))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    listed = [line.split()[2] for line in lines if " class " in line and "%" not in line]
    assert [n for n in listed if n.isdigit()] == [str(k) for k in (*range(15), *range(985, 1000))]
    assert any(" 970 others " in line for line in lines)
