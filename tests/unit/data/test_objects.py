"""Boxes and points of every form of annotations become objects in pixels of the upright image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.data.coco import read_coco
from ray_wsss.data.csv_labels import read_csv
from ray_wsss.data.label_studio import encode_brush, read_label_studio
from ray_wsss.data.objects import read_objects
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.data.source import Source
from ray_wsss.data.sources.classes import with_classes
from ray_wsss.data.sources.masks import with_masks
from ray_wsss.data.sources.yolo import read_yolo
from ray_wsss.data.voc import read_voc
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import ingest_here, summarise

HEIGHT, WIDTH = 40, 80
NAN = float("nan")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return picture(tmp_path / "photos/a.jpg")


def picture(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


def ingested(source: Source, tmp_path: Path, image: str | int = 0) -> tuple[list[tuple[Any, ...]], list[str]]:
    """Objects of an image as (class, box, points with labels), and the remarks with their details."""
    out = tmp_path / "out"
    metadata = ingest_here(source, out=out, max_errors=0)
    reader = ShardReader(out)
    row = reader.read(reader.index_of(image) if isinstance(image, str) else image)
    objects = read_objects(row["objects"]) or ()
    remarks = pq.read_table(out / "remarks.parquet").to_pylist() if metadata.remarks else []
    told = [f"{entry['remark']}: {entry['detail']}" for entry in remarks]
    rounded = [
        (
            found.class_index,
            found.box_xyxy and tuple(round(v, 3) for v in found.box_xyxy),
            [(round(x, 3), round(y, 3), k) for (x, y), k in zip(found.points_xy, found.point_labels)],
        )
        for found in objects
    ]
    assert DatasetMetadata.load(out).objects == sum(not found.iscrowd for found in objects)
    return rounded, told


def coco(tmp_path: Path, *annotations: dict[str, Any], **image: Any) -> Source:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **image}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": k, "image_id": 1, **a} for k, a in enumerate(annotations, 1)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "photos", tmp_path / "coco.json")


def table(tmp_path: Path, *lines: str, **options: Any) -> Source:
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return read_csv(tmp_path / "table.csv", tmp_path / "photos", **options)


# --- Readers -------------------------------------------------------------------------------------


def test_coco_boxes_and_visible_keypoints(photo, tmp_path):
    points = [5, 6, 2, 30, 20, 1, 0, 0, 0, 7.5, 8, 2]
    source = coco(
        tmp_path,
        {"category_id": 2, "bbox": [1.5, 2, 10, 20.25], "keypoints": points},
        {"category_id": 1, "segmentation": [[4, 5, 20, 5, 20, 15, 4, 15]]},
        {"category_id": 1, "bbox": [0, 0, 80, 40], "iscrowd": 1},
    )
    objects, remarks = ingested(source, tmp_path)
    assert objects == [
        (1, (1.5, 2, 11.5, 22.25), [(5, 6, 1), (7.5, 8, 1)]),
        (0, (4, 5, 20, 15), []),  # the box of its outline
        (0, (0, 0, 80, 40), []),
    ]
    assert not [remark for remark in remarks if "box" in remark and "alone" not in remark]


def test_voc_boxes_count_from_one(tmp_path):
    root = tmp_path / "voc"
    picture(root / "JPEGImages/a.jpg")
    boxes = [
        ("cat", (1, 1, 80, 40)),
        ("dog", (11, 21, 30, 40)),
        ("cat", ("nan", 1, 5, 5)),
        ("dog", (9, 9, 8, 9)),
    ]
    edges = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box))
        + "</bndbox></object>"
        for name, box in boxes
    )
    for path, text in {
        "Annotations/a.xml": f"<annotation>{objects}<object><name>dog</name></object></annotation>",
        "ImageSets/Main/train.txt": "a\n",
    }.items():
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
    found, remarks = ingested(read_voc(root, "train"), tmp_path)
    cat, dog = 7, 11
    assert found == [(cat, (0, 0, 80, 40), []), (dog, (10, 20, 30, 40), [])]
    expected = "; expected finite numbers with an area"
    assert remarks == [
        f"box left out: object 3 (cat): xmin 'nan', ymin '1', xmax '5', ymax '5'{expected}",
        f"box left out: object 4 (dog): xmin '9', ymin '9', xmax '8', ymax '9'{expected}",
    ]


def test_yolo_boxes_and_those_around_polygons(tmp_path):
    picture(tmp_path / "images/train/a.jpg")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    label = tmp_path / "labels/train/a.txt"
    label.parent.mkdir(parents=True)
    lines = ["1 .5 .5 .25 .5", "0 .1 .2 .5 .2 .5 .6", "0 nan .5 .1 .1", "1 .5 .5 0 .1", "0 1.5 .5 .1 .1"]
    label.write_text("\n".join(lines))
    found, remarks = ingested(read_yolo(tmp_path / "data.yaml"), tmp_path)
    assert found == [(1, (30, 10, 50, 30), []), (0, (8, 8, 40, 24), [])]
    assert remarks == [
        "box left out: line 3 of the label file: '0 nan .5 .1 .1'; expected numbers",
        "box left out: line 4 of the label file: '1 .5 .5 0 .1' has no area",
        "box wholly outside its image: annotation line 5: x 116 to 124, y 18 to 22 "
        "in an image of 80x40 pixels",
    ]


@pytest.mark.parametrize("header", [None, "path,label,x1,y1,x2,y2", "file,class,xmin,ymin,xmax,ymax"])
def test_csv_boxes_and_points(photo, tmp_path, header):
    picture(tmp_path / "photos/b.jpg")
    lines = [
        "a.jpg,cat,1,2,30.5,20",
        "a.jpg,dog,5,6,,",  # a lone point is an object
        "a.jpg,dog,7,8",
        "a.jpg,cat,9,10,1",  # points with sides are one object
        "a.jpg,cat,11,12,0",
        "b.jpg,dog",
    ]
    source = table(tmp_path, *([header] if header else []), *lines)
    assert source.class_names == ["cat", "dog"]
    assert [row.image_labels for row in source.rows] == [(0, 1), (1,)]
    found, remarks = ingested(source, tmp_path, "a.jpg")
    assert (found, remarks) == (
        [
            (0, (1, 2, 30.5, 20), []),
            (1, None, [(5, 6, 1)]),
            (1, None, [(7, 8, 1)]),
            (0, None, [(9, 10, 1), (11, 12, 0)]),
        ],
        [],
    )
    reader = ShardReader(tmp_path / "out")
    assert reader.read(reader.index_of("b.jpg"))["objects"] is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,cat,dog,bird", "line 2 is 'a.jpg,cat,dog,bird'; expected 'path,label;label'"),
        ("a.jpg,cat,1", "or 'path,label,x,y'"),
        ("a.jpg,cat;dog,1,2", "line 2 has 'cat;dog' at a place; expected one class"),
        ("a.jpg,,1,2,3,4", "line 2 has '' at a place"),
        ("a.jpg,none,1,2", "line 2 has 'none' at a place"),
        ("a.jpg,cat,1,2,3", "line 2 has '3' after x and y; expected 1 for a point on the object"),
    ],
)
def test_malformed_lines_of_a_table(photo, tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, "a.jpg,cat", line, none_label="none")


def test_one_hot_tables_stay_one_hot(photo, tmp_path):
    source = table(tmp_path, "path,cat,x,dog", "a.jpg,1,0,1")
    assert (source.class_names, source.rows[0].annotations) == (["cat", "x", "dog"], None)


def region(name: str, kind: str, label: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"id": name, "type": kind, "value": value | {kind: [label]}} | size | more


def click(name: str, label: str, x: float, y: float, **more: Any) -> dict[str, Any]:
    return region(name, "keypointlabels", label, {"x": x, "y": y, "width": 0.3}, **more)


def label_studio(tmp_path: Path, *results: dict[str, Any]) -> Source:
    tasks = [{"data": {"image": "a.jpg"}, "annotations": [{"result": list(results)}]}]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    return read_label_studio(tmp_path / "tasks.json", tmp_path / "photos")


def test_label_studio_boxes_and_clicks(photo, tmp_path):
    source = label_studio(
        tmp_path,
        click("p1", "cat", 50, 50, parentID="r"),
        region("r", "rectanglelabels", "cat", {"x": 25, "y": 25, "width": 50, "height": 50}),
        click("p2", "cat", 5, 10),
        click("p3", "dog", 10, 10),
        click("p4", "dog", 20, 10, is_positive=False),
        click("p5", "dog", 30, 10),
        click("p6", "bird", 150, 10),
    )
    assert source.class_names == ["bird", "cat", "dog"]
    found, remarks = ingested(source, tmp_path)
    assert found == [
        (1, (20, 10, 60, 30), [(40, 20, 1)]),
        (1, None, [(4, 4, 1)]),
        (2, None, [(8, 4, 1), (16, 4, 0), (24, 4, 1)]),
    ]
    assert remarks == ["point left out: annotation p6: x 120, y 4 in an image of 80x40 pixels"]


def test_clicks_on_what_is_outlined_keep_the_mask(photo, tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[10:20, 30:50] = True
    brush = {"format": "rle", "rle": list(encode_brush(mask))}
    source = label_studio(tmp_path, region("b", "brushlabels", "cat", brush), click("p", "cat", 50, 40))
    found, remarks = ingested(source, tmp_path)
    assert found == [(0, (30, 10, 50, 20), []), (0, None, [(40, 16, 1)])]
    assert remarks == []
    assert DatasetMetadata.load(tmp_path / "out").has_masks


# --- What can't be used --------------------------------------------------------------------------


def test_what_cannot_be_used_costs_itself(photo, tmp_path):
    good = {"category_id": 1, "bbox": [1, 1, 5, 5]}
    source = coco(
        tmp_path,
        good,
        {"category_id": 1, "bbox": [NAN, 1, 5, 5]},
        {"category_id": 1, "bbox": [1, 1, 0, 5]},
        {"category_id": 2, "bbox": [90, 1, 5, 5]},
        {"category_id": 1, "bbox": [-3, 1, 10, 5]},
        {"category_id": 1, "bbox": [70, 30, 10.5, 10.9]},  # rounded
        {"category_id": 1, "keypoints": [1, 2]},
        {"category_id": 1, "keypoints": [5, 50, 2, 6, NAN, 2, 7, 8, 2]},
    )
    found, remarks = ingested(source, tmp_path)
    assert [box for _, box, _ in found] == [(1, 1, 6, 6), (0, 1, 7, 6), (70, 30, 80, 40), None]
    assert found[-1] == (0, None, [(7, 8, 1)])
    assert ShardReader(tmp_path / "out").read(0)["image_labels"] == [0, 1]  # the dog is not forgotten
    four = "expected x, y, width and height, finite and with an area"
    assert remarks == [
        f"box left out: annotation 2: [nan, 1, 5, 5]; {four}",
        f"box left out: annotation 3: [1, 1, 0, 5]; {four}",
        "keypoints left out: annotation 7: [1, 2]; expected x, y and visibility, repeated",
        "box wholly outside its image: annotation 4: x 90 to 95, y 1 to 6 in an image of 80x40 pixels",
        "box clipped at the image's border: annotation 5: x -3 to 7, y 1 to 6 in an image of 80x40 pixels",
        "point left out: annotation 8: x 5, y 50 in an image of 80x40 pixels",
        "point left out: annotation 8: x 6, y nan; expected finite pixels",
    ]


def test_boxes_and_points_of_a_table_that_cannot_be_used(photo, tmp_path):
    source = table(
        tmp_path,
        "a.jpg,cat,9,9,1,1",
        "a.jpg,cat,1,1,inf,9",
        "a.jpg,cat,nan,1",
        "a.jpg,cat,1,200,1",
        "a.jpg,dog,1,2,0",
        "a.jpg,cat,1,2",
        "gone.jpg,cat,1,2",
    )
    metadata = ingest_here(source, out=tmp_path / "out", max_errors=None)
    assert (metadata.images, metadata.errors, metadata.objects) == (1, 1, 1)
    errors = pq.read_table(tmp_path / "out/errors.parquet").to_pylist()
    assert [(row["image_id"], row["reason"]) for row in errors] == [("gone.jpg", "no such file: gone.jpg")]
    remarks = pq.read_table(tmp_path / "out/remarks.parquet").to_pylist()
    expected = "expected finite pixels, x1 < x2 and y1 < y2"
    assert [f"{row['remark']}: {row['detail']}" for row in remarks] == [
        f"box left out: line 1: x 9 to 1, y 9 to 1; {expected}",
        f"box left out: line 2: x 1 to inf, y 1 to 9; {expected}",
        "point left out: annotation of line 3: x nan, y 1; expected finite pixels",
        "point left out: annotation of line 4: x 1, y 200 in an image of 80x40 pixels",
        "object without a point on it: annotation of line 5: it has 1 points, all of them beside it",
    ]
    assert "1 objects with a box or points" in summarise(metadata)


# --- Orientation, masks, classes -----------------------------------------------------------------


@pytest.mark.parametrize(("x", "y", "upright"), [(30, 70, True), (70, 30, False)])
def test_points_tell_the_orientation(tmp_path, x, y, upright):
    """The file has 80x40 pixels, which EXIF turns to 40x80; a point that fits nowhere doesn't disturb."""
    picture(tmp_path / "photos/a.jpg", orientation=6)
    found, remarks = ingested(table(tmp_path, f"a.jpg,cat,{x},{y}", "a.jpg,cat,500,500"), tmp_path)
    assert found == [(0, None, [(x, y, 1)])]
    assert len(remarks) == 1
    row = ShardReader(tmp_path / "out").read(0)
    assert (row["height"], row["width"]) == ((80, 40) if upright else (40, 80))


def test_masks_of_a_folder_leave_boxes_alone(photo, tmp_path):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "masks/a.png")
    outline = {"category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6]]}
    source = with_masks(coco(tmp_path, outline), tmp_path / "masks")
    assert ingested(source, tmp_path)[0] == [(1, (1, 2, 4, 6), [])]
    mask = Image.open(tmp_path / "masks/a.png")
    assert np.asarray(mask).min() == 1


def test_objects_follow_the_names_of_a_class_file(photo, tmp_path):
    source = with_classes(table(tmp_path, "a.jpg,dog,1,2"), ["cat", "dog"], tmp_path / "classes.txt")
    assert ingested(source, tmp_path)[0] == [(1, None, [(1, 2, 1)])]


def test_an_image_without_objects(photo, tmp_path):
    ingest_here(coco(tmp_path), out=tmp_path / "out", max_errors=0)
    row = ShardReader(tmp_path / "out").read(0)
    assert row["image_labels"] == []
    assert not row["objects"]
