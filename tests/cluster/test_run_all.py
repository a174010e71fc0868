"""Every stage in turn, from files to masks, and again: nothing is made twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_wsss.cli import main
from ray_wsss.data.coco import read_coco
from ray_wsss.data.images import decode_mask
from ray_wsss.data.sources.classes import with_classes
from ray_wsss.runs.history import load_runs
from ray_wsss.stages.ingest import ingest_here

SCENES = 24
FLAGS = [
    *("--preset", "demo", "--ssc", "--workers", "1", "--cpm.view", "image"),
    *("--classifier.batch-size", "8", "--classifier.max-iters", "4", "--cpm.warmup-iters", "2"),
    *("--segmenter.batch-size", "8", "--segmenter.max-iters", "2", "--label.scales", "1.0"),
]


def sort_into_folders(images: Path, annotations: Path, root: Path) -> None:
    """Copies of the images in a folder for each class; an image of several classes is in several."""
    content = json.loads(annotations.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for image_id, category_id in {(a["image_id"], a["category_id"]) for a in content["annotations"]}:
        folder = root / names[category_id]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / files[image_id], folder)


@pytest.mark.usefixtures("ray_cluster")
def test_run_all_from_a_folder(
    write_source: Callable[[Path, int], tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, annotations = write_source(tmp_path / "source", SCENES)
    photos, validation, out = (tmp_path / name for name in ("photos", "validation", "out"))
    sort_into_folders(images, annotations, photos)
    source = read_coco(images, annotations)
    ingest_here(with_classes(source, sorted(source.class_names), annotations), out=validation, max_errors=0)
    paths = ["--folder", str(photos), "--validation", str(validation), "--out", str(out)]
    assert main(["run-all", *paths, *FLAGS]) == 0
    told = capsys.readouterr().out
    steps = ("ingest", "embed", "segment-everything", "train-classifier", "label", "train-segmenter")
    assert all(f"[{k}/7] {name}\n" in told for k, name in enumerate((*steps, "evaluate"), start=1))
    assert {"cam_fixed", "cam_best", "segmenter"} <= json.loads((out / "metrics.json").read_text()).keys()
    for folder in ("embeddings", "segments", "labels"):
        (record,) = load_runs(out / folder)
        assert record["figures"]["images"] == SCENES
        assert record["figures"]["seconds"].keys() >= {"decode", "write", "wait"}
        assert record["cluster"]["nodes"] == 1
    for folder in ("classifier", "segmenter"):
        assert [record["workers"]["workers"] for record in load_runs(out / folder)] == [1]
    masks = sorted((out / "export" / "masks").rglob("*.png"))
    assert [decode_mask(mask.read_bytes()).shape for mask in masks] == [(96, 96)] * SCENES
    page = (out / "report.html").read_text()
    assert "an earlier version" not in page  # of the stages here, export keeps no record of its runs
    assert all(f"<h4>{name}" in page for name in ("embed", "segment-everything", "label"))
    assert page.count("<h3>train-") == 2

    made = {path: path.stat().st_mtime_ns for path in [*out.rglob("*.parquet"), *masks]}
    assert main(["run-all", *paths, *FLAGS]) == 0
    assert capsys.readouterr().out.count("is already finished") == 7  # of them the export
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(load_runs(out / "labels")) == 1

    shutil.copy(images / sorted(path.name for path in images.iterdir())[0], photos / "new.jpg")
    for copy in photos.glob("*/*"):
        if copy.read_bytes() == (photos / "new.jpg").read_bytes():
            copy.unlink()
    assert main(["run-all", *paths, *FLAGS]) == 1
    assert "was made from other images or labels than there are now" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "there are no images; expected one of --dataset, --folder, --csv, --coco"),
        (["--dataset", "d", "--folder", "f"], "--dataset and --folder are given; expected one of"),
        (["--coco", "a.json"], "--coco needs --images"),
        (["--folder", "f", "--images", "i"], "--images i is not used with --folder; expected --csv or"),
        (["--folder", "."], "lies in --folder .; expected a folder apart"),
        (["--folder", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_where_the_images_are(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run-all", "--out", "out", *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_validation_of_other_classes(
    dataset: Path, foreign_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--dataset", str(dataset), "--validation", str(foreign_dataset), "--out", str(tmp_path / "out")]
    assert main(["run-all", *paths, *FLAGS]) == 1
    assert "has other classes than" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
