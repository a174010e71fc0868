"""What all exports have in common: filters, errors, names, reruns, predictions instead of labels."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from label_runs import write_labels
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.data.images import decode_mask, encode_mask
from ray_wsss.runs.manifest import Output
from ray_wsss.stages.label import LABEL_SCHEMA
from ray_wsss.storage import find_files

FORMATS = ("voc", "coco", "yolo", "label-studio", "folder")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", FORMATS)
def test_bad_rows_are_named_and_nothing_leaves_the_folder(
    kind: str, export, labelled, names_of, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(labelled.dataset.parent.rglob("*"))
    out = export(kind)
    told = capsys.readouterr().out
    assert "13 images with" in told
    assert "1 error" in told
    assert "broken.jpg: truncated JPEG (as a test has it)" in told
    assert "1 image exported without a mask" in told
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert error == {"image_id": "broken.jpg", "reason": "truncated JPEG (as a test has it)"}
    assert set(names_of(out)) == set(labelled.label_maps)
    assert list(tmp_path.iterdir()) == [out]
    assert set(labelled.dataset.parent.rglob("*")) == before
    assert not list(out.rglob(".*"))


def test_folder_has_masks_and_overlays(export, labelled, names_of) -> None:
    out = export("folder")
    for image_id, name in names_of(out).items():
        with (
            Image.open(out / "masks" / f"{name}.png") as mask,
            Image.open(out / "overlays" / f"{name}.jpg") as o,
        ):
            np.testing.assert_array_equal(np.array(mask), labelled.label_maps[image_id])
            assert mask.mode == "P"
            assert o.size == mask.size
    classes = json.loads((out / "classes.json").read_text())
    assert [entry["name"] for entry in classes][:2] == ["background", "cat"]


def test_filters(export, labelled, names_of, capsys: pytest.CaptureFixture[str]) -> None:
    # Scores are 0.45, 0.4 and 0.35 by class.
    out = export("folder", "--min-score", "0.36", "--min-area-px", "4")
    told = capsys.readouterr().out
    assert "below the score 0.36" in told
    assert "smaller than 4 pixels" in told
    for image_id, name in names_of(out).items():
        expected, seen = labelled.label_maps[image_id], np.array(Image.open(out / "masks" / f"{name}.png"))
        assert not (seen == 3).any()
        assert (seen[expected == 3] == 255).all()
        kept = seen != 255
        np.testing.assert_array_equal(seen[kept], expected[kept])
        assert (seen[expected == 0] == 0).all()


def test_chosen_classes_are_numbered_anew(export, labelled, names_of, capsys) -> None:
    unicode_name = "Ünïcode: <x> & 'y'"
    out = export("coco", "--classes", unicode_name, "traffic light", "--instances", "class")
    assert "of other classes" in capsys.readouterr().out
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "traffic light"), (2, unicode_name)]
    ids = {image["id"]: image["ray_wsss_id"] for image in content["images"]}
    for annotation in content["annotations"]:
        label_map = labelled.label_maps[ids[annotation["image_id"]]]
        assert annotation["area"] == (label_map == annotation["category_id"] + 1).sum()
    assert len(content["images"]) == len(labelled.label_maps)
    folder = export("folder", "--classes", "traffic light", out="masks")
    mask = np.array(Image.open(folder / "masks" / f"{names_of(folder)['scan.tif']}.png"))
    expected = labelled.label_maps["scan.tif"]
    np.testing.assert_array_equal(mask == 1, expected == 2)
    assert (mask[(expected == 1) | (expected == 3)] == 0).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_an_interrupted_export_goes_on(
    kind: str, export, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = files(export(kind, out="whole"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ray_wsss.export.run._csv_line", stop)
        with pytest.raises(AssertionError):
            export(kind)
    out = export(kind)
    assert files(out) == expected
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    export(kind)
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_refusals(export, labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in ("export", *argv)]) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "unexpected" not in told
        return told

    out = export("voc")
    inputs = ["--labels", labelled.labels, "--dataset", labelled.dataset]
    assert "holds the output of export voc" in refuse("yolo", *inputs, "--out", out)
    assert "another min_area_px" in refuse("voc", *inputs, "--out", out, "--min-area-px", 9)
    new = ["--out", tmp_path / "new"]
    assert "did you mean cat?" in refuse("voc", *inputs, *new, "--classes", "cta")
    assert "--min-score is 7.0" in refuse("voc", *inputs, *new, "--min-score", 7)
    assert "--min-area-px is 0" in refuse("voc", *inputs, *new, "--min-area-px", 0)
    assert "--split is ../x" in refuse("coco", *inputs, *new, "--split", "../x")
    assert "--boundary-px is -1" in refuse("voc", *inputs, *new, "--boundary-px", "-1")
    assert "either --labels" in refuse("voc", *new)
    assert "--labels needs --dataset" in refuse("voc", *inputs[:2], *new)
    assert "--predictions needs --images" in refuse("voc", "--predictions", out, *new)
    assert "holds the output of export voc" in refuse("voc", "--labels", out, *inputs[2:], *new)
    assert "not a finished data set" in refuse("voc", *inputs[:2], "--dataset", tmp_path, *new)
    assert "lies in --out" in refuse("voc", *inputs, "--out", labelled.dataset.parent)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def predictions(labelled, names_of, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of images, and what predict would leave for it: one mask is gone, one image failed."""
    images, out = tmp_path / "images", tmp_path / "predictions"
    output = Output(out, "predict", {})
    output.begin()
    masks = {}
    for number, label_map in enumerate(labelled.label_maps.values()):
        name = f"a/Bild {number}.png"
        path, mask = images / name, out / "masks" / name
        for file in (path, mask):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*label_map.shape, 3), np.uint8)).save(path)
        mask.write_bytes(encode_mask(np.where(label_map == 255, 0, label_map).astype(np.uint8)))
        masks[name] = name
    (out / "masks" / "a" / "Bild 3.png").unlink()
    masks["../../outside.png"] = "../../outside.png"
    (out / "masks.json").write_text(json.dumps(masks))
    names = ["background", "cat", "traffic light", "third"]
    (out / "classes.json").write_text(json.dumps([{"index": k, "name": n} for k, n in enumerate(names)]))
    output.finish()
    return images, out


def test_predictions_of_a_folder(labelled, predictions, names_of, tmp_path: Path, capsys) -> None:
    images, masks = predictions
    out = tmp_path / "out"
    command = ["export", "coco", "--predictions", str(masks), "--images", str(images), "--out", str(out)]
    assert main([*command, "--instances", "class"]) == 0
    told = capsys.readouterr().out
    assert "12 images" in told
    assert "2 errors" in told
    assert "a/Bild 3.png: its mask: no such file" in told
    assert "path leaves the folder" in told
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    maps = list(labelled.label_maps.values())
    ids = {i["id"]: int(i["ray_wsss_id"].removeprefix("a/Bild ")[:-4]) for i in content["images"]}
    assert {i["file_name"] for i in content["images"]} >= {"a_Bild_0.png", "a_Bild_12.png"}
    for annotation in content["annotations"]:
        assert annotation["area"] == (maps[ids[annotation["image_id"]]] == annotation["category_id"]).sum()
        assert "score" not in annotation
    assert main([*command[:-1], str(tmp_path / "b"), "--min-score", "0.5"]) == 1
    assert "predictions have no scores" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """More labels mean more open files of them, up to 64; beyond that hardly anything (measure_memory.py)."""
    from measure_memory import measure  # beside this file

    small, large = measure(1_000, tmp_path), measure(20_000, tmp_path)
    assert large < small + 40


def test_leftovers_of_a_killed_export_go(export) -> None:
    out = export("yolo")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"state": "unfinished"}))
    (out / "labels" / ".0123.tmp").write_text("half")
    export("yolo")
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.parametrize("kind", FORMATS)
def test_into_a_bucket(kind: str, export, labelled, bucket: Path) -> None:
    here = files(export(kind))
    out = bucket / kind
    paths = ["--labels", str(labelled.labels), "--dataset", str(labelled.dataset), "--out", str(out)]
    assert main(["export", kind, *paths]) == 0
    there = {name: (out / name).read_bytes() for name in find_files(out)}
    made_at = {"manifest.json"}  # has times and paths
    assert there.keys() == here.keys()
    assert all(there[name] == here[name] for name in here.keys() - made_at)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_of_unknown_labels_is_ignored_everywhere_and_has_no_instance(
    kind: str, labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, size = tmp_path / "labels", {"height": 40, "width": 56}
    png = encode_mask(np.full((40, 56), 255, np.uint8))
    row = {"image_id": "a/b.jpg", "pseudo_label": png, "segments": [], **size}
    write_labels([row], labels, {}, LABEL_SCHEMA)
    flags = ["--labels", labels, "--dataset", labelled.dataset, "--out", tmp_path / "out"]
    assert main(["export", kind, *map(str, flags)]) == 0
    assert "1 image with 0 masks exported" in capsys.readouterr().out
    masks = [path for path in (tmp_path / "out").rglob("*.png") if "overlays" not in path.parts]
    assert len(masks) == {"voc": 2, "folder": 1}.get(kind, 0)
    for mask in masks:
        assert (decode_mask(mask.read_bytes()) == 255).all()
    if kind == "coco":
        (content,) = (tmp_path / "out").rglob("instances_*.json")
        assert json.loads(content.read_text())["annotations"] == []
