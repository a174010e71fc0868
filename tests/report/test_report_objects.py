"""The report and `show` on labels from annotated objects: boxes and points, and no CAM."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.data.reader import ShardReader
from ray_wsss.figures.overview import OverviewRow, class_colour, render_overview
from ray_wsss.label_format import LabelMap

SAM = ("--preset", "demo", "--sam-actors", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable[[Path, int], Path]) -> Path:
    root = tmp_path_factory.mktemp("objects")
    flags = ["--dataset", str(write_dataset(root, 3)), "--prompts-from", "annotations", *SAM]
    assert main(["label", *flags, "--out", str(root / "labels")]) == 0
    return root


def test_gallery_has_boxes_and_points(root: Path) -> None:
    assert main(["report", str(root), "--out", str(root / "report.html")]) == 0
    page = (root / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found is not None
    labels = ShardReader(root / "labels")
    for image in json.loads(found[1])["facts"]:
        segments = labels.read(labels.index_of(image["id"]))["segments"]
        assert segments
        by_score = sorted(segments, key=lambda segment: -min(1, segment["sam_score"]))
        for mask, segment in zip(image["masks"], by_score, strict=True):
            assert mask["box"] == pytest.approx(segment["box_xyxy"], abs=0.05)
            assert (len(mask["points"]), mask["pointLabels"], mask["camMean"]) == (1, [1], None)
            assert mask["score"] == pytest.approx(min(1, segment["sam_score"]), abs=1e-4)


def test_show_draws_what_was_labelled(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = ShardReader(root / "labels")
    inputs = ["--labels", str(root / "labels"), "--dataset", str(root / "dataset")]
    assert main(["show", *reader.image_ids[:2], *inputs, "--out", str(root / "shown.png")]) == 0
    with Image.open(root / "shown.png") as picture:
        assert picture.width == pytest.approx(150 * 3 * 4, abs=1)  # image, prompts, label, truth
    assert main(["show", "nobody", *inputs, "--out", str(root / "none.png")]) == 1
    assert "has no image nobody" in capsys.readouterr().err
    assert main(["show", "x.jpg", "--out", str(root / "none.png")]) == 1
    assert "expected either --classifier, or --labels with --dataset" in capsys.readouterr().err


def test_boxes_are_drawn_where_they_are() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    maps: dict[str, LabelMap] = {"label": np.zeros((40, 40), np.uint8)}
    row = OverviewRow(image=image, cams={}, points=[], boxes=[(0, (10, 10, 30, 30))], label_maps=maps)
    pixels = render_overview([row], ["a"])
    near = (np.abs(pixels.astype(int) - class_colour(0)).sum(-1) < 12).any(0)
    columns = np.flatnonzero(near[: pixels.shape[1] * 2 // 3])
    cell = pixels.shape[1] / 3
    assert columns.min() == pytest.approx(cell * 1.25, abs=6)
    assert columns.max() == pytest.approx(cell * 1.75, abs=6)
