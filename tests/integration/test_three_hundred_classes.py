"""300 classes from a folder to the report, by the commands, as a user would run them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ray_wsss.cli import main
from ray_wsss.data.reader import ShardReader

CLASSES = 300
SMALL = ["--preset", "demo", "--workers", "0"]
STEPS = ["batch-size", "4", "max-iters", "2", "checkpoint-every", "2", "lr-warmup-iters", "0"]


def steps(section: str) -> list[str]:
    return [f"--{section}.{word}" if k % 2 == 0 else word for k, word in enumerate(STEPS)]


def run(*argv: object) -> None:
    assert main([str(word) for word in argv]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of 64 px for each of 300 classes: a square of one colour on another."""
    root, rng = tmp_path_factory.mktemp("imagenet_like"), np.random.default_rng(0)
    for k in range(CLASSES):
        (root / f"n{k:08d}").mkdir()
        for copy in range(2):
            pixels = np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8)
            pixels[20:50, 10:40] = rng.integers(0, 256, 3)
            Image.fromarray(pixels).save(root / f"n{k:08d}" / f"{copy}.jpg")
    return root


def open_grey(png: bytes | Path) -> np.ndarray:
    image = Image.open(io.BytesIO(png) if isinstance(png, bytes) else png)
    assert image.mode == "I;16"
    return np.asarray(image)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.slow
def test_three_hundred_classes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    classifier, labels, segmenter = runs / "classifier", runs / "labels", runs / "segmenter"
    run("ingest", "folder", "--root", folder, "--out", data)
    names = json.loads((data / "metadata.json").read_text())["class_names"]
    assert len(names) == CLASSES
    train = ["--cpm.warmup-iters", "1", "--out", classifier, *SMALL, *steps("classifier")]
    run("train-classifier", "--dataset", data, *train)
    one_pass = ["--label.scales", "1.0", "--preset", "demo"]
    run("label", "--dataset", data, "--classifier", classifier, "--out", labels, *one_pass)

    reader, highest = ShardReader(labels), 0
    for row, image_id in enumerate(ShardReader(data).image_ids):
        label = reader.read(row)
        own = names.index(image_id.split("/")[0])
        found = open_grey(label["pseudo_label"])
        assert set(np.unique(found)) <= {0, own + 1}
        assert [segment["class_index"] for segment in label["segments"]] == [own]
        highest = max(highest, int(found.max()))
    assert highest > 255

    source = ["--labels", labels, "--dataset", data]
    exports = tmp_path / "exports"
    run("export", "coco", *source, "--out", exports / "coco")
    coco = COCO(str(exports / "coco" / "annotations" / "instances_train.json"))
    assert len(coco.getCatIds()) == CLASSES
    run("export", "folder", *source, "--out", exports / "folder")
    masks = {path.relative_to(exports / "folder" / "masks"): path for path in exports.rglob("masks/**/*.png")}
    for image in coco.loadImgs(coco.getImgIds()):
        painted = np.zeros((64, 64), np.uint16)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            painted[coco.annToMask(annotation) > 0] = annotation["category_id"]
        np.testing.assert_array_equal(open_grey(masks[Path(image["file_name"]).with_suffix(".png")]), painted)
    assert len(json.loads((exports / "folder" / "classes.json").read_text())) == 1 + CLASSES
    run("export", "label-studio", *source, "--out", exports / "studio")
    assert (exports / "studio" / "config.xml").read_text().count("<Label ") == CLASSES
    run("export", "yolo", *source, "--out", exports / "yolo")
    classes = {
        int(line.split()[0])
        for path in (exports / "yolo" / "labels").rglob("*.txt")
        for line in path.read_text().splitlines()
    }
    assert max(classes) > 255
    capsys.readouterr()
    assert main(["export", "voc", *map(str, source), "--out", str(exports / "voc")]) == 1
    assert "300 classes, and VOC's masks have room for 254" in capsys.readouterr().err
    assert not (exports / "voc").exists()
    some = ["--classes", *names[298:], "--skip-images"]
    run("export", "voc", *source, "--out", exports / "voc", *some)

    # COCO of these labels is a data set with ground truth of 16 bits.
    truth = tmp_path / "truth"
    images = exports / "coco" / "images" / "train"
    annotations = exports / "coco" / "annotations" / "instances_train.json"
    run("ingest", "coco", "--images", images, "--annotations", annotations, "--out", truth)
    predictions = tmp_path / "predictions"
    train = ["--labels", labels, "--out", segmenter, *SMALL, *steps("segmenter")]
    run("train-segmenter", "--dataset", data, *train)
    few = tmp_path / "few"
    few.mkdir()
    for k in range(3):
        (few / f"{k}.jpg").write_bytes((folder / names[-1 - k] / "0.jpg").read_bytes())
    run("predict", "--segmenter", segmenter, "--images", few, "--out", predictions, "--overlays")
    for k in range(3):
        assert open_grey(predictions / "masks" / f"{k}.png").max() <= CLASSES
    figures = tmp_path / "metrics.json"
    capsys.readouterr()
    measured = ["--classifier", classifier, "--segmenter", segmenter, "--json", figures]
    run("evaluate", "--dataset", truth, *measured, *one_pass)
    assert "the file of --json has all classes" in capsys.readouterr().out
    metrics = json.loads(figures.read_text())
    for name in ("cam_fixed", "cam_best", "segmenter"):
        assert len(metrics[name]["iou"]) == 1 + CLASSES
        assert metrics[name]["images"] == 2 * CLASSES
    page = tmp_path / "report.html"
    run("report", runs, "--dataset", data, "--metrics", figures, "--out", page)
    text = page.read_text()
    assert "worst class first" in text
    assert page.stat().st_size < 3_000_000
