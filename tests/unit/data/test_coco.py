"""COCO: against small hand-made files, and against pycocotools on genuine ones."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ray_wsss.data.coco import rasterise, read_coco
from ray_wsss.errors import UserError

GENUINE = Path(__file__).parents[3] / "../shared/data/coco"
needs_genuine = pytest.mark.skipif(not GENUINE.is_dir(), reason="genuine COCO images are not on this machine")

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def square(category: int, image: int = 1, **fields) -> dict:
    return {
        "id": 7,
        "image_id": image,
        "category_id": category,
        "segmentation": SQUARE,
        "iscrowd": 0,
    } | fields


def coco_file(folder: Path, annotations: list[dict] | None, **fields) -> Path:
    content = {
        "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "bicycle"}, {"id": 10, "name": "kite"}],
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 8, "width": 10},
            {"id": 2, "file_name": "sub/b.jpg", "height": 8, "width": 10},
        ],
        "annotations": annotations,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content | fields))
    return path


def test_classes_labels_and_ids(tmp_path):
    path = coco_file(tmp_path, [square(18), square(2), square(18), square(10, iscrowd=1)])
    source = read_coco(tmp_path, path)
    class_names, (first, second) = source.class_names, source.rows
    assert class_names == ["bicycle", "kite", "dog"]
    assert (first.image_id, first.image_labels, first.stated_hw) == ("1", (0, 1, 2), (8, 10))
    assert first.path == str(tmp_path / "a.jpg")
    assert first.annotations is not None
    assert [a["class_index"] for a in first.annotations] == [2, 0, 2, 1]
    assert (second.image_labels, second.annotations, second.error) == ((), [], None)


@pytest.mark.parametrize("name", ["../x.jpg", "sub/../../x.jpg", "/etc/hostname", "link/x.jpg", "a\0.jpg"])
def test_a_path_that_leaves_the_folder_is_an_error_row(tmp_path, name):
    images = tmp_path / "images"
    images.mkdir()
    (images / "link").symlink_to(tmp_path)
    path = coco_file(tmp_path, [], images=[{"id": 1, "file_name": name}])
    row = read_coco(images, path).rows[0]
    assert row.error is not None
    assert row.path == name


def test_bad_annotations_are_error_rows(tmp_path):
    rows = read_coco(
        tmp_path, coco_file(tmp_path, [square(99), square(2, image=2), square(2, image=55)])
    ).rows
    assert [row.image_id for row in rows] == ["1", "2", "55"]
    assert rows[0].error == "annotation 7: unknown category_id 99"
    assert rows[1].error is None
    assert "doesn't list" in (rows[2].error or "")


def test_bad_stated_size_is_an_error_row(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "height": 0, "width": 10}]
    assert "height of 0" in (read_coco(tmp_path, coco_file(tmp_path, [], images=images)).rows[0].error or "")


def test_annotations_without_segmentation_give_labels_only(tmp_path):
    boxes = [square(2, segmentation=None), square(18, image=2)]
    first, second = read_coco(tmp_path, coco_file(tmp_path, boxes)).rows
    assert (first.image_labels, first.annotations) == ((0,), None)
    assert second.annotations is not None
    # In a file of labels alone, an image without annotations isn't known to be all background.
    second = read_coco(tmp_path, coco_file(tmp_path, boxes[:1])).rows[1]
    assert second.annotations is None


def test_unusable_files_are_user_errors(tmp_path):
    image, kite = {"id": 1, "file_name": "a.jpg"}, {"id": 10, "name": "kite"}
    for fields, message in [
        ({"images": [image, image]}, "images has id 1 twice"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no usable 'id' or 'file_name'"),
        ({"categories": [kite, kite]}, "categories has id 10 twice"),
        ({"categories": [kite, kite | {"id": 11}]}, "repeated class name"),
        ({"categories": []}, "0 classes"),
        ({"categories": [{"id": i, "name": str(i)} for i in range(255)]}, "255 classes; expected 1 to 254"),
        ({"images": None}, "'images' is missing or not a list"),
    ]:
        with pytest.raises(UserError, match=message):
            read_coco(tmp_path, coco_file(tmp_path, [], **fields))
    with pytest.raises(UserError, match="'annotations' is missing or not a list"):
        read_coco(tmp_path, coco_file(tmp_path, None))
    for text, message in [("{", "not valid JSON"), ("[]", "holds a JSON list"), ("\xff", "not valid JSON")]:
        path = tmp_path / "bad.json"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=f"bad.json.*{message}"):
            read_coco(tmp_path, path)
    with pytest.raises(UserError, match=r"absent.json can't be read"):
        read_coco(tmp_path, tmp_path / "absent.json")
    with pytest.raises(UserError, match="is not a folder"):
        read_coco(tmp_path / "absent", coco_file(tmp_path, []))


def boxed(class_index: int, y0: int, y1: int, x0: int, x1: int, **fields) -> dict:
    counts: Any = coco_mask.encode(np.asfortranarray(box(y0, y1, x0, x1).astype(np.uint8)))["counts"]
    segmentation = {"size": [8, 10], "counts": counts.decode()}
    return {"id": 7, "class_index": class_index, "iscrowd": False, "segmentation": segmentation} | fields


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((8, 10), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_smaller_is_painted_over_larger_and_crowd_over_all():
    large, small = boxed(3, 0, 8, 0, 8), boxed(0, 2, 4, 2, 4)
    for order in ([large, small], [small, large]):
        label_map = rasterise(order, 8, 10)
        assert (label_map[box(2, 4, 2, 4)] == 1).all()
        assert (label_map == 4).sum() == 60
        assert (label_map == 0).sum() == 16
    label_map = rasterise([boxed(1, 0, 8, 3, 10, iscrowd=True), large, small], 8, 10)
    assert (label_map[box(0, 8, 3, 10)] == 255).all()
    assert (label_map[box(2, 4, 2, 3)] == 1).all()
    assert rasterise([], 8, 10).tolist() == np.zeros((8, 10)).tolist()


def test_uncompressed_rle_equals_compressed():
    flat = box(1, 6, 2, 9).ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.array([0, *edges, flat.size])).tolist()
    plain = boxed(4, 0, 0, 0, 0, segmentation={"size": [8, 10], "counts": counts})
    np.testing.assert_array_equal(rasterise([plain], 8, 10), rasterise([boxed(4, 1, 6, 2, 9)], 8, 10))
    assert (rasterise([plain], 8, 10) == 5 * box(1, 6, 2, 9)).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5]], "polygon of 4 numbers; expected x, y pairs, at least 6"),
        ([[1, 1, 5, 5, 3, 3, 2]], "polygon of 7 numbers"),
        ([[1, 1, 5, 5, 3, float("nan")]], "not finite"),
        ([[1, 1, 5, 5, 3, 1e30]], "not finite"),
        ([[1, 1, 5, 5, 3, "x"]], "could not convert"),
        ([3, 4, 5, 6, 7, 8], "polygon of 3"),
        ("polygon", "expected polygons or RLE"),
        ({"size": [8, 11], "counts": [88]}, r"RLE of size \[8, 11\]; expected \[8, 10\]"),
        ({"size": [8, 10], "counts": [10, 20]}, "don't add up"),
        ({"size": [8, 10], "counts": [100, -20]}, "don't add up"),
        ({"size": [8, 10], "counts": "11"}, "don't add up"),
        ({"size": [8, 10], "counts": "\x7f~"}, "outside COCO's alphabet"),
        ({"size": [8, 10], "counts": "oooo"}, "end too early"),
        ({"counts": [80]}, "size"),
    ],
)
def test_bad_segmentations_name_the_annotation(segmentation, message):
    with pytest.raises(ValueError, match=f"^annotation 7: .*{message}"):
        rasterise([boxed(0, 0, 1, 0, 1, segmentation=segmentation)], 8, 10)


@needs_genuine
@pytest.mark.parametrize(("split", "images", "empty"), [("train", 460, 4), ("val", 185, 1)])
def test_genuine_rows_equal_the_json(split, images, empty):
    path = GENUINE / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    source = read_coco(GENUINE / "images", path)
    class_names, rows = source.class_names, source.rows
    assert len(rows) == len(content["images"]) == images
    assert len(class_names) == 80
    assert sum(row.image_labels == () for row in rows) == empty
    assert all(row.image_labels is not None for row in rows)
    names = {category["id"]: category["name"] for category in content["categories"]}
    expected: dict[str, set[str]] = {str(image["id"]): set() for image in content["images"]}
    for annotation in content["annotations"]:
        expected[str(annotation["image_id"])].add(names[annotation["category_id"]])
    for row in rows:
        assert row.error is None
        assert Path(row.path).is_file()
        assert {class_names[label] for label in row.image_labels or ()} == expected[row.image_id]


@needs_genuine
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize(("split", "step"), [("train", 8), ("val", 4)])
def test_genuine_masks_equal_ann_to_mask(split, step):
    path = GENUINE / f"annotations/instances_{split}.json"
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(path))
    source = read_coco(GENUINE / "images", path)
    class_names, rows = source.class_names, source.rows
    value_of = {c["id"]: class_names.index(c["name"]) + 1 for c in oracle.dataset["categories"]}
    crowded = {str(a["image_id"]) for a in oracle.dataset["annotations"] if a["iscrowd"]}
    chosen = [row for k, row in enumerate(rows) if k % step == 0 or row.image_id in crowded]
    assert len(chosen) >= 46
    for row in chosen:
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=[int(row.image_id)]))
        masks = [oracle.annToMask(annotation).astype(bool) for annotation in annotations]
        height, width = row.stated_hw or (0, 0)
        # Pixel by pixel, the covering annotation of least area wins: no painting order involved.
        expected = np.zeros((height, width), np.uint8)
        least = np.full((height, width), np.inf)
        for annotation, mask in zip(annotations, masks):
            wins = mask & (mask.sum() <= least)
            if not annotation["iscrowd"]:
                expected[wins] = value_of[annotation["category_id"]]
                least[wins] = mask.sum()
        for annotation, mask in zip(annotations, masks):
            if annotation["iscrowd"]:
                expected[mask] = 255
        np.testing.assert_array_equal(rasterise(row.annotations or [], height, width), expected)
