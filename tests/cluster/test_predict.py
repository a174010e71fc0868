"""Masks for a folder of images: nested, with broken files and equal stems, in one run and in several."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.config import PredictConfig
from ray_wsss.data.images import voc_palette
from ray_wsss.data.scenes import make_scene
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.stages.predict import Predictor

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Image -> mask, by the rule for equal stems.
GOOD = {
    "a.jpg": "a.jpg.png",
    "a.png": "a.png.png",
    "b.bmp": "b.png",
    "x/a.png": "x/a.png",
    "x/y/c.jpg": "x/y/c.png",
}


def _save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_scene(seed, 48 + 8 * (seed % 2), 64).image).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for seed, name in enumerate(GOOD):
        _save(root / name, seed)
    (root / "x" / "broken.jpg").write_bytes((root / "a.jpg").read_bytes()[:-100])
    return root


def _predict(images: Path, segmenter: Path, out: Path, *flags: str) -> int:
    paths = ["--images", str(images), "--segmenter", str(segmenter), "--out", str(out)]
    return main(["predict", "--preset", "demo", *paths, *flags])


def _masks(out: Path) -> dict[str, int]:
    """Masks, and when they were written."""
    root = out / "masks"
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def test_masks_are_the_predictors(
    images: Path, segmenter: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _predict(images, segmenter, out, "--actors", "2", "--overlays") == 0
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary.startswith("5 images predicted, ")
    assert "images/s, 1 error" in summary
    assert set(_masks(out)) == set(GOOD.values())
    predictor = Predictor.load(segmenter, PredictConfig())
    several = 0
    for image, mask in GOOD.items():
        with Image.open(images / image) as opened, Image.open(out / "masks" / mask) as found:
            assert (found.mode, found.size) == ("P", opened.size)
            assert (np.array(found.getpalette()).reshape(256, 3) == voc_palette()).all()
            label_map = np.asarray(found)
            np.testing.assert_array_equal(label_map, predictor(np.asarray(opened)))
        several += len(np.unique(label_map)) > 1
        assert (out / "overlays" / mask).with_suffix(".jpg").exists()
    assert several >= 3
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert error["image"] == "x/broken.jpg"
    assert error["reason"].startswith("truncated JPEG")
    names = [entry["name"] for entry in json.loads((out / "classes.json").read_text())]
    assert names == ["background", *DatasetMetadata.load(dataset).class_names]


def test_a_run_goes_on_with_what_is_missing(
    images: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _predict(images, segmenter, out) == 0
    before = _masks(out)
    content = (out / "masks" / "b.png").read_bytes()

    (out / "masks" / "b.png").unlink()  # as if the run had been killed
    _save(images / "x" / "broken.jpg", 9)
    _save(images / "new.jpg", 10)
    assert _predict(images, segmenter, out) == 0
    assert "4 images are done already" in capsys.readouterr().out
    after = _masks(out)
    assert {name for name in after if after[name] != before.get(name)} == {"b.png", "x/broken.png", "new.png"}
    assert (out / "masks" / "b.png").read_bytes() == content
    assert not (out / "errors.parquet").exists()

    everything = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert _predict(images, segmenter, out) == 0
    told = capsys.readouterr().out
    assert "already finished" in told
    assert told.splitlines()[-1].startswith("7 images predicted, 0 errors")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == everything

    assert _predict(images, segmenter, out, "--predict.flip") == 1
    assert "predict.flip (False, now True)" in capsys.readouterr().err
    assert _masks(out) == after


def test_no_image_that_can_be_read(
    segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.jpg").write_text("no picture")
    assert _predict(root, segmenter, tmp_path / "out") == 1
    assert "all 1 images failed" in capsys.readouterr().err
    assert (tmp_path / "out" / "errors.parquet").exists()
