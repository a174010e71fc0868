"""Exports of labels from annotated objects: an instance for each object, overlaps and parts included."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from label_runs import write_labels
from PIL import Image
from pycocotools.coco import COCO

from ray_wsss.cli import main
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import encode_mask
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata, write_table_atomically
from ray_wsss.stages.label import LABEL_SCHEMA

HEIGHT, WIDTH = 40, 60


def rectangle(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


# (class, mask, predicted IoU); two cats overlap a dog, the last dog is in two parts, one cat is nowhere.
OBJECTS = [
    (0, rectangle((2, 2, 20, 20)), 0.9),
    (1, rectangle((10, 10, 40, 30)), 0.7),
    (0, rectangle((35, 5, 45, 15)), 0.6),
    (1, rectangle((48, 2, 56, 12), (50, 20, 58, 38)), 0.8),
    (0, rectangle(), 0.1),
]


def painted() -> np.ndarray:
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    for class_index, mask, _ in sorted(OBJECTS, key=lambda each: each[2]):
        label_map[mask] = class_index + 1
    return label_map


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("objects")
    size = {"image_id": "7", "height": HEIGHT, "width": WIDTH}
    jpeg = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(jpeg, "JPEG")
    image = {"image": jpeg.getvalue(), "orientation": 1}
    segments = [
        {
            "class_index": class_index,
            "points_xy": [[float(k), 2.0]],
            "point_labels": [k % 2],
            "box_xyxy": [1.0, 2.0, 31.5, 22.0] if k != 2 else None,
            "sam_score": score,
            "stability_score": 0.75,
            "cam_mean": None,
            "area": int(mask.sum()),
            "rle": encode_rle(mask)["counts"],
            "object_index": k,
        }
        for k, (class_index, mask, score) in enumerate(OBJECTS)
    ]
    label = {"pseudo_label": encode_mask(painted()), "segments": segments}
    write_labels([size | label], folder / "labels", {}, LABEL_SCHEMA)
    table = pa.Table.from_pylist([size | image], schema=IMAGE_SCHEMA)
    write_table_atomically(table, folder / "data" / "shards/part-000000.parquet")
    DatasetMetadata(
        class_names=("cat", "dog"), source="coco", images=1, unlabelled=0, errors=0, has_masks=False
    ).save(folder / "data")
    return ["--labels", str(folder / "labels"), "--dataset", str(folder / "data")]


@pytest.fixture
def export(inputs, tmp_path: Path) -> Callable[..., Path]:
    def run(kind: str, *flags: str) -> Path:
        assert main(["export", kind, *inputs, "--out", str(tmp_path / kind), *flags]) == 0
        return tmp_path / kind

    return run


@pytest.mark.parametrize("flags", [(), ("--polygons",)])
def test_coco_has_an_annotation_for_each_object(export, flags, capsys):
    out = export("coco", *flags)
    coco = COCO(str(out / "annotations/instances_train.json"))
    found: list[Any] = list(coco.loadAnns(coco.getAnnIds()))
    assert len(found) == 4
    for annotation, (class_index, mask, score) in zip(found, OBJECTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycocotools under NumPy 2
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert (annotation["category_id"], annotation["area"]) == (class_index + 1, mask.sum())
        assert annotation["score"] == annotation["predicted_iou"] == pytest.approx(score)
        assert "cam_mean" not in annotation
    assert [a["prompt_box"] for a in found] == [[1, 2, 30.5, 20], [1, 2, 30.5, 20], None, [1, 2, 30.5, 20]]
    assert [a["point_labels"] for a in found] == [[0], [1], [0], [1]]
    assert "masks left out: 1 smaller than 1 pixels" in capsys.readouterr().out


def test_voc_numbers_objects_as_classes_overlap(export):
    out = export("voc")
    objects, classes = (
        np.asarray(Image.open(out / f"Segmentation{kind}/7.png")) for kind in ("Object", "Class")
    )
    np.testing.assert_array_equal(classes, painted())
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in sorted(range(4), key=lambda k: OBJECTS[k][2]):
        expected[OBJECTS[k][1]] = k + 1
    np.testing.assert_array_equal(objects, expected)


def test_yolo_has_a_line_for_each_object(export):
    out = export("yolo")
    lines = (out / "labels/train/7.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == [0, 1, 0, 1]
    for line, (_, mask, _) in zip(lines, OBJECTS):
        corners = np.array(line.split()[1:], float).reshape(-1, 2) * [WIDTH, HEIGHT]
        found = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.fillPoly(found, [corners.astype(np.int32)], 1)
        extra = (found.astype(bool) != mask).sum()
        assert not (mask & (found == 0)).any()
        assert extra <= (8 if mask is OBJECTS[3][1] else 0)  # the cut between two parts


def test_dropped_objects_are_ignored_where_nothing_else_is(export):
    out = export("coco", "--min-score", "0.65")
    content = json.loads((out / "annotations/instances_train.json").read_text())
    assert [a["category_id"] for a in content["annotations"]] == [1, 2, 2]
    out = export("voc", "--min-score", "0.65")
    classes = np.asarray(Image.open(out / "SegmentationClass/7.png"))
    only = OBJECTS[2][1] & ~OBJECTS[0][1] & ~OBJECTS[1][1]
    assert (classes[only] == 255).all()
    assert (classes[~only] == painted()[~only]).all()


def test_objects_of_one_class_lie_below_those_of_others(export):
    out = export("voc", "--classes", "dog")
    classes = np.asarray(Image.open(out / "SegmentationClass/7.png"))
    np.testing.assert_array_equal(classes, (OBJECTS[1][1] | OBJECTS[3][1]).astype(np.uint8))


def test_classes_may_still_be_instances(export):
    out = export("coco", "--instances", "class")
    content = json.loads((out / "annotations/instances_train.json").read_text())
    assert [a["category_id"] for a in content["annotations"]] == [1, 2]
