"""Exports of 300 classes, read back with other programs; VOC has no room for them."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ray_wsss.config.export import ExportFilter
from ray_wsss.errors import UserError
from ray_wsss.export.coco import CocoFormat
from ray_wsss.export.folder import FolderFormat
from ray_wsss.export.label_studio import LabelStudioFormat
from ray_wsss.export.run import run_export
from ray_wsss.export.source import LabelledImage
from ray_wsss.export.voc import VocFormat
from ray_wsss.export.yolo import YoloFormat

NAMES = tuple(f"class {k}" for k in range(300))
LABELS = np.zeros((12, 16), np.uint16)
LABELS[:4, :5], LABELS[6:10, 2:9], LABELS[2:11, 11:15], LABELS[11] = 300, 255, 7, 65_535


class OneImage:
    """A source of one image with `LABELS`."""

    class_names: Sequence[str] = NAMES
    has_scores = False
    depends_on: Mapping[str, Any] = {}

    def image_ids(self) -> Iterator[str]:
        yield "one"

    def __iter__(self) -> Iterator[LabelledImage]:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 12), "grey").save(buffer, "PNG")
        yield LabelledImage(image_id="one", data=buffer.getvalue(), label_map=LABELS)


def export(out: Path, make: Any, classes: tuple[str, ...] = (), **settings: Any) -> None:
    report = run_export(
        OneImage(),
        lambda folder, names: make(folder, names, **settings),
        out=out,
        stage="export",
        settings=settings,
        filters=ExportFilter(classes=classes),
        by="components",
    )
    assert report is not None
    assert (report.images, report.errors) == (1, [])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco(tmp_path):
    export(tmp_path, CocoFormat, split="train")
    coco = COCO(str(tmp_path / "annotations" / "instances_train.json"))
    painted = np.zeros_like(LABELS)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        painted[coco.annToMask(annotation) > 0] = annotation["category_id"]
    np.testing.assert_array_equal(painted, np.where(LABELS == 65_535, 0, LABELS))
    assert coco.loadCats([300])[0]["name"] == "class 299"


def test_folder(tmp_path):
    export(tmp_path, FolderFormat)
    mask = Image.open(tmp_path / "masks" / "one.png")
    assert mask.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(mask), LABELS)
    described = json.loads((tmp_path / "classes.json").read_text())
    assert len({tuple(entry["colour"]) for entry in described}) == 301
    overlay = np.asarray(Image.open(tmp_path / "overlays" / "one.jpg")).astype(int)
    for y, x, label in ((2, 2, 300), (8, 5, 255), (7, 13, 7)):
        expected = 0.35 * 0.75 * 128 + 0.65 * np.array(described[label]["colour"])
        assert np.abs(overlay[y, x] - expected).max() < 25


def test_yolo_and_label_studio(tmp_path):
    export(tmp_path / "yolo", YoloFormat, split="train")
    lines = (tmp_path / "yolo" / "labels" / "train" / "one.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == [6, 254, 299]
    assert '  299: "class 299"' in (tmp_path / "yolo" / "data.yaml").read_text()
    export(tmp_path / "studio", LabelStudioFormat, url_prefix="")
    labels = ElementTree.parse(tmp_path / "studio" / "config.xml").findall(".//Label")
    assert [label.get("value") for label in labels] == list(NAMES)
    assert len({label.get("background") for label in labels}) == 300


def test_voc_takes_no_more_than_254_of_them(tmp_path):
    with pytest.raises(UserError, match="300 classes, and VOC's masks have room for 254"):
        export(tmp_path / "all", VocFormat, split="train")
    export(tmp_path / "two", VocFormat, ("class 254", "class 299"), split="train")
    mask = Image.open(tmp_path / "two" / "SegmentationClass" / "one.png")
    assert mask.mode == "P"
    new = {0: 0, 7: 0, 255: 1, 300: 2, 65_535: 255}
    np.testing.assert_array_equal(np.asarray(mask), np.vectorize(new.__getitem__)(LABELS))
