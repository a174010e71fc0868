"""Single images: what label gives for them, from the command line and from Python, as the documents say."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ray_wsss
from ray_wsss.cli import main
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.storage import copy_file, find_files

SETTINGS = {"label.scales": (1.0,)}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(write_source: Callable[[Path, int], tuple[Path, Path]], tmp_path_factory) -> list[Path]:
    folder, _ = write_source(tmp_path_factory.mktemp("source"), 4)
    return sorted(folder.glob("*.jpg"))


@pytest.fixture(scope="module")
def labeller(classifier: Path) -> ray_wsss.ImageLabeller:
    return ray_wsss.ImageLabeller(classifier, preset="demo", settings=SETTINGS, device="cpu")


def test_as_label_on_ray(labeller, dataset: Path, labels: Path) -> None:
    names = DatasetMetadata.load(dataset).class_names
    rows, expected = ShardReader(dataset), ShardReader(labels)
    differing = []
    for i in range(6):
        row = rows.read(i)
        label = expected.read(expected.index_of(row["image_id"]))
        pixels = decode_image(row["image"], row["orientation"])
        found = labeller(pixels, classes=[names[k] for k in row["image_labels"]])
        differing.append((found.label_map != decode_mask(label["pseudo_label"])).mean())
        for one, other in zip(found.found, label["segments"], strict=True):
            assert one.class_index == other["class_index"]
            assert one.score == pytest.approx(other["sam_score"] * other["cam_mean"], abs=1e-3)
            mask = decode_rle(other["rle"], pixels.shape[:2])
            assert (one.mask != mask).mean() < 1e-3
            np.testing.assert_allclose(one.points_xy, other["points_xy"], atol=1)
    assert max(differing) < 1e-3  # batches of another size round differently


def test_what_an_image_comes_back_with(labeller, images: list[Path]) -> None:
    picture = labeller(images[0], threshold=0.0)
    with Image.open(images[0]) as opened:
        width, height = opened.size
    assert picture.class_names == labeller.class_names
    assert list(picture.probabilities) == list(labeller.class_names)
    assert picture.label_map.shape == picture.cam.shape == picture.image.shape[:2] == (height, width)
    assert 0 < picture.cam.max() <= 1
    for entry in picture.found:
        assert entry.mask.shape == (height, width)
        assert entry.mask[picture.label_map == entry.class_index + 1].all()
        assert ((entry.points_xy > 0) & (entry.points_xy < (width, height))).all()
        assert 0 <= entry.score <= 1
    nothing = labeller(images[0], threshold=1.0)
    assert nothing.found == ()
    assert not nothing.label_map.any()
    assert nothing.error is None


def test_a_bad_image_stops_nothing(labeller, images: list[Path], classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    grey = np.zeros((8, 8), np.uint8)
    many = [tmp_path / "text.jpg", tmp_path / "gone.jpg", images[0], grey, tmp_path]
    found = ray_wsss.label_images(many, classifier=classifier, preset="demo", settings=SETTINGS, threshold=0)
    errors = [picture.error or "" for picture in found]
    assert "not an image" in errors[0]
    assert errors[1] == "no such file: gone.jpg"
    assert errors[2] == ""
    assert "expected uint8 (H, W, 3)" in errors[3]
    assert "can't be read" in errors[4]
    with pytest.raises(UserError, match="knows no class red_disk; did you mean red_disc"):
        labeller(images[0], classes=["red_disk"])
    with pytest.raises(UserError, match=r"unknown key label\.tua"):
        ray_wsss.ImageLabeller(classifier, preset="demo", settings={"label.tua": 1})


def show(*argv: object) -> int:
    return main(["show", *[str(word) for word in argv]])


def test_show(images: list[Path], classifier: Path, tmp_path: Path, capsys) -> None:
    common = ["--classifier", classifier, "--preset", "demo", "--label.scales", "1.0"]
    other = tmp_path / "other" / images[0].name
    other.parent.mkdir()
    shutil.copy(images[0], other)
    inputs = [images[0], images[1], other, tmp_path / "gone.jpg"]
    assert show(*inputs, *common, "--threshold", "0", "--out", tmp_path / "all.png") == 0
    told = capsys.readouterr().out
    assert f"[1/4] {images[0]}: red_disc (" in told
    assert "gone.jpg: no such file: gone.jpg" in told
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.width > 1500
        assert np.asarray(picture.convert("RGB")).std() > 20
    assert show(*inputs, *common, "--classes", "red_disc", "pink_star", "--out", tmp_path / "folder") == 0
    assert len(list((tmp_path / "folder").glob("*_labels.png"))) == 3
    told = capsys.readouterr().out
    assert "red_disc (" in told
    assert "blue_cross (" not in told
    assert show(images[0], *common, "--threshold", "1", "--out", tmp_path / "none.png") == 0
    assert "no class reaches 1, the likeliest are" in capsys.readouterr().out


def test_show_opens_a_window_where_there_is_one(
    images: list[Path], classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(tmp_path)
    common = ["--classifier", classifier, "--preset", "demo", "--label.scales", "1.0"]
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert show(images[0], *common) == 0
    if sys.platform == "linux":
        assert opened == []
        assert (tmp_path / "labels.png").is_file()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert show(images[0], *common) == 0
    assert len(opened) == 1
    assert opened[0].startswith("file://")


def test_show_refuses(images: list[Path], classifier: Path, tmp_path: Path, capsys) -> None:
    image = tmp_path / "image.png"
    shutil.copy(images[0], image)
    before = image.read_bytes()
    common = ["--classifier", classifier, "--preset", "demo"]
    cases = {
        "one of the images": [image, *common, "--out", image],
        "expected a .png file": [image, *common, "--out", tmp_path / "x.jpg"],
        "--threshold is 2": [image, *common, "--threshold", "2"],
        "there are no images": common,
        "none of the 1 images": [tmp_path / "gone.jpg", *common, "--out", tmp_path / "x.png"],
        "holds no trained classifier": [image, "--classifier", tmp_path, "--preset", "demo"],
        "did you mean red_disc?": [image, *common, "--classes", "red_disk"],
    }
    for words, argv in cases.items():
        assert show(*argv) == 1
        told = capsys.readouterr().err
        assert words in told
        assert "unexpected" not in told
    assert image.read_bytes() == before


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_example_of_the_documents(
    document: str,
    images: list[Path],
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import ray_wsss.*?)```", text, re.S)
    (tmp_path / "demo" / "coco").mkdir(parents=True)
    (tmp_path / "demo" / "coco" / "held_out").symlink_to(images[0].parent)
    (tmp_path / "demo" / "classifier_cpm").symlink_to(classifier)
    monkeypatch.chdir(tmp_path)
    exec(example, {})  # the document's own words
    assert "held_out" in capsys.readouterr().out


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, ray_wsss; print([n for n in ('torch', 'ray', 'numpy') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_files_in_a_bucket(images: list[Path], classifier: Path, bucket: Path) -> None:
    copy_file(images[0], bucket / "a" / "one.jpg")
    copy_file(images[0], bucket / "b" / "one.jpg")
    for name in ("model.json", "model.safetensors", "manifest.json"):
        copy_file(classifier / name, bucket / "classifier" / name)
    there = [str(bucket / folder / "one.jpg") for folder in "ab"]
    flags = ["--classifier", str(bucket / "classifier"), "--preset", "demo", "--threshold", "0"]
    assert main(["show", *there, *flags, "--out", str(bucket / "shown")]) == 0
    assert len(find_files(bucket / "shown")) == 2
