"""COCO: against small hand-made files, and against pycocotools on genuine ones."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ray_wsss.data.coco import rasterise, read_coco
from ray_wsss.errors import UserError
from ray_wsss.storage import parse_path

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


@pytest.mark.parametrize("side", [-1, 0, 640.5, "wide", None, float("inf"), [8], 10**30])
def test_a_size_that_cannot_be_one_counts_as_not_stated(tmp_path, side):
    images = [{"id": 1, "file_name": "a.jpg", "height": side, "width": 10}]
    source = read_coco(tmp_path, coco_file(tmp_path, [], images=images))
    assert (source.rows[0].stated_hw, source.rows[0].error) == (None, None)
    assert source.remarks == ["1 images state a size that isn't one, such as -1; the files tell it"]


def test_sizes_as_float_and_text_and_none_at_all(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "height": 8.0, "width": "10"}, {"id": 2, "file_name": "b.jpg"}]
    source = read_coco(tmp_path, coco_file(tmp_path, [], images=images))
    assert [row.stated_hw for row in source.rows] == [(8, 10), None]
    assert source.remarks == []


def test_annotations_without_segmentation_give_labels_only(tmp_path):
    boxes = [square(2, segmentation=none) for none in (None, [], [[]])]
    first, second = read_coco(tmp_path, coco_file(tmp_path, [*boxes, square(18, image=2)])).rows
    assert first.image_labels == (0,)
    assert rasterise(first.annotations or [], 8, 10) is None
    assert rasterise(second.annotations or [], 8, 10) is not None
    # In a file of labels alone, an image without annotations isn't known to be all background.
    second = read_coco(tmp_path, coco_file(tmp_path, boxes)).rows[1]
    assert (second.image_labels, second.annotations) == ((), None)


def test_images_without_annotations_are_unknown_on_request(tmp_path):
    path = coco_file(tmp_path, [square(2)])
    assert [row.image_labels for row in read_coco(tmp_path, path).rows] == [(0,), ()]
    first, second = read_coco(tmp_path, path, "unknown").rows
    assert (first.image_labels, second.image_labels, second.annotations) == ((0,), None, None)


ROOT = [{"id": 0, "name": "pets", "supercategory": "none"}]
PETS = [{"id": k, "name": name, "supercategory": "pets"} for k, name in ((1, "cat"), (2, "dog"))]


def test_a_root_category_is_dropped_and_named(tmp_path):
    source = read_coco(tmp_path, coco_file(tmp_path, [square(2), square(1)], categories=ROOT + PETS))
    assert (source.class_names, source.rows[0].image_labels) == (["cat", "dog"], (0, 1))
    (remark,) = source.remarks
    assert remark.startswith("category 'pets' is left out of the classes")
    # Roboflow's data set of one class, named as the data set.
    same = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
    ]
    assert read_coco(tmp_path, coco_file(tmp_path, [square(1)], categories=same)).class_names == ["cat"]


def test_other_categories_are_no_roots(tmp_path):
    used = coco_file(tmp_path, [square(0)], categories=ROOT + PETS)
    assert read_coco(tmp_path, used).class_names == ["pets", "cat", "dog"]
    alone = coco_file(tmp_path, [], categories=ROOT)
    assert read_coco(tmp_path, alone).class_names == ["pets"]
    # COCO's own person is of the supercategory person.
    person = [{"id": 1, "name": "person", "supercategory": "person"}]
    source = read_coco(tmp_path, coco_file(tmp_path, [], categories=person))
    assert (source.class_names, source.remarks) == (["person"], [])


@pytest.mark.parametrize("write", [str, float])
def test_ids_as_text_and_float(tmp_path, write):
    annotations = [square(write(18), image=write(1)), square(2, image=2)]
    categories = [{"id": write(k), "name": str(k)} for k in (18, 9, 2)]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": write(2), "file_name": "b.jpg"}]
    source = read_coco(tmp_path, coco_file(tmp_path, annotations, categories=categories, images=images))
    assert source.class_names == ["2", "9", "18"]
    assert [(row.image_id, row.image_labels) for row in source.rows] == [("1", (2,)), ("2", (0,))]


def test_ids_of_annotations_may_be_missing_or_repeated_and_iscrowd_too(tmp_path):
    bare = {"image_id": 1, "category_id": 2, "segmentation": [[1, 2, 3, 4]]}
    annotations = [bare, square(18), square(10, iscrowd="0"), square(10, image=2, iscrowd="1")]
    first, second = read_coco(tmp_path, coco_file(tmp_path, annotations)).rows
    assert first.image_labels == (0, 1, 2)
    assert [o["iscrowd"] for o in first.annotations or []] == [False, False, False]
    assert [o["iscrowd"] for o in second.annotations or []] == [True]
    remarks: list[tuple[str, str]] = []
    rasterise(first.annotations or [], 8, 10, remarks)
    assert remarks[0][1].startswith("annotation [0]: a polygon of 4 numbers")


def test_images_that_cannot_be_told_apart_are_error_rows(tmp_path):
    a, b = {"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "b.jpg"}
    others = [{"id": 5}, {"file_name": "c.jpg"}, {"id": 2, "file_name": "d.jpg"}]
    source = read_coco(tmp_path, coco_file(tmp_path, [square(2)], images=[a, b, *others]))
    assert {(row.image_id, row.path, row.error) for row in source.rows if row.error} == {
        ("1", "a.jpg", "2 images have id 1; expected unique ids"),
        ("1", "b.jpg", "2 images have id 1; expected unique ids"),
        ("5", "", "images[2] has no usable 'id' or 'file_name'"),
        ("images[3]", "c.jpg", "images[3] has no usable 'id' or 'file_name'"),
    }
    assert [row.image_id for row in source.rows if not row.error] == ["2"]
    # The same entry twice is one image.
    source = read_coco(tmp_path, coco_file(tmp_path, [square(2)], images=[a, a]))
    assert [(row.image_id, row.image_labels) for row in source.rows] == [("1", (0,))]


def test_unusable_files_are_user_errors(tmp_path):
    kite = {"id": 10, "name": "kite"}
    for fields, message in [
        ({"categories": [{"id": 10}]}, r"categories\[0\] has no usable 'id' or 'name'"),
        ({"categories": [kite, kite]}, "categories has id 10 twice"),
        ({"categories": [kite, kite | {"id": 11}]}, "repeated class name"),
        ({"categories": []}, "0 classes"),
        ({"categories": [{"id": i, "name": str(i)} for i in range(65_535)]}, "expected 1 to 65,534"),
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


def painted(annotations: list[dict], remarks: list[tuple[str, str]] | None = None) -> np.ndarray:
    label_map = rasterise(annotations, 8, 10, remarks)
    assert label_map is not None
    return label_map


def test_smaller_is_painted_over_larger_and_crowd_over_all():
    large, small = boxed(3, 0, 8, 0, 8), boxed(0, 2, 4, 2, 4)
    for order in ([large, small], [small, large]):
        label_map = painted(order)
        assert (label_map[box(2, 4, 2, 4)] == 1).all()
        assert (label_map == 4).sum() == 60
        assert (label_map == 0).sum() == 16
    label_map = painted([boxed(1, 0, 8, 3, 10, iscrowd=True), large, small])
    assert (label_map[box(0, 8, 3, 10)] == 255).all()
    assert (label_map[box(2, 4, 2, 3)] == 1).all()
    assert painted([]).tolist() == np.zeros((8, 10)).tolist()


def test_uncompressed_rle_equals_compressed():
    flat = box(1, 6, 2, 9).ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.array([0, *edges, flat.size])).tolist()
    plain = boxed(4, 0, 0, 0, 0, segmentation={"size": [8, 10], "counts": counts})
    np.testing.assert_array_equal(painted([plain]), painted([boxed(4, 1, 6, 2, 9)]))
    assert (painted([plain]) == 5 * box(1, 6, 2, 9)).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5]], "polygon of 4 numbers; expected x, y pairs, at least 6"),
        ([[1, 1, 5, 5, 3, 3, 2]], "polygon of 7 numbers"),
        ([[1, 1, 5, 5, 3, float("nan")]], "not finite"),
        ([[1, 1, 5, 5, 3, 1e30]], "not finite"),
        ([[1, 1, 5, 5, 3, "x"]], "could not convert"),
        ([3, 4, 5, 6], "polygon of 4 numbers"),
        ("polygon", "expected polygons or RLE"),
        ({"size": [8, 11], "counts": [88]}, r"RLE of size \[8, 11\]; expected \[8, 10\]"),
        ({"size": [8, 10], "counts": [10, 20]}, "don't add up"),
        ({"size": [8, 10], "counts": [100, -20]}, "don't add up"),
        ({"size": [8, 10], "counts": "11"}, "don't add up"),
        ({"size": [8, 10], "counts": "\x7f~"}, "outside COCO's alphabet"),
        ({"size": [8, 10], "counts": "oooo"}, "end too early"),
        ({"counts": [80]}, "RLE of size None"),
        ({"size": [8, 10]}, "RLE counts of type NoneType"),
        ({"size": [8, 10], "counts": [79.5, 0.5]}, "don't add up"),
    ],
)
def test_bad_outlines_are_left_out_and_named(segmentation, message):
    remarks: list[tuple[str, str]] = []
    bad = boxed(0, 0, 1, 0, 1, segmentation=segmentation)
    found = painted([boxed(4, 1, 6, 2, 9), bad], remarks)
    np.testing.assert_array_equal(found, 5 * box(1, 6, 2, 9))
    ((remark, detail),) = remarks
    assert remark == "outline left out"
    assert re.search(f"^annotation 7: .*{message}", detail)
    # In its box, if it has one, nobody knows which pixels are its own.
    found = painted([boxed(4, 1, 6, 2, 9), bad | {"bbox": [0.5, 4.2, 3, 3]}])
    np.testing.assert_array_equal(found == 255, box(4, 8, 0, 4) & ~box(1, 6, 2, 9))
    # Alone it makes no mask: all background would be wrong.
    assert rasterise([bad], 8, 10) is None


def test_the_good_part_of_an_outline_is_kept():
    remarks: list[tuple[str, str]] = []
    parts = boxed(4, 0, 1, 0, 1, segmentation=[SQUARE[0], [1, 2, 3, 4], 5, []])
    np.testing.assert_array_equal(painted([parts], remarks), 5 * box(1, 5, 1, 5))
    assert [detail.partition("; ")[0] for _, detail in remarks] == [
        "annotation 7: a polygon of 4 numbers",
        "annotation 7: a polygon of 5",
    ]


def test_a_flat_list_is_one_polygon():
    flat = boxed(4, 0, 1, 0, 1, segmentation=SQUARE[0])
    np.testing.assert_array_equal(painted([flat]), 5 * box(1, 5, 1, 5))


def test_compressed_rle_as_python_shows_bytes():
    """str() of pycocotools' result; its alphabet has a backslash, which Python doubles."""
    plain: Any = {"size": [8, 10], "counts": [44, 36]}
    rle: Any = coco_mask.frPyObjects(plain, 8, 10)
    text = str(rle["counts"])
    assert "\\\\" in text
    shown = boxed(0, 0, 1, 0, 1, segmentation={"size": [8.0, "10"], "counts": text})
    np.testing.assert_array_equal(painted([shown]), np.arange(80).reshape(10, 8).T >= 44)


@pytest.mark.parametrize(
    ("polygon", "inside", "remark"),
    [
        ([5, 2, 14, 2, 14, 6, 5, 6], (2, 6, 5, 10), "outline clipped at the image's border"),
        ([-3, -3, 4, -3, 4, 2, -3, 2], (0, 2, 0, 4), "outline clipped at the image's border"),
        ([12, 2, 14, 2, 14, 6, 12, 6], None, "object wholly outside its image"),
        ([0, 0, 10, 0, 10, 8, 0, 8], (0, 8, 0, 10), None),
    ],
)
def test_outside_the_image_is_clipped_and_counted(polygon, inside, remark):
    remarks: list[tuple[str, str]] = []
    label_map = painted([boxed(0, 0, 1, 0, 1, segmentation=[polygon])], remarks)
    np.testing.assert_array_equal(label_map > 0, box(*inside) if inside else np.zeros((8, 10), bool))
    assert [found for found, _ in remarks] == ([remark] if remark else [])
    assert all(detail.endswith("in an image of 10x8 pixels") for _, detail in remarks)


def test_a_box_among_outlines_is_ignored_and_an_object_without_a_place_makes_no_mask():
    outline, boxes = boxed(4, 1, 6, 2, 9), {"id": 9, "class_index": 0, "segmentation": None}
    remarks: list[tuple[str, str]] = []
    found = painted([outline, boxes | {"bbox": [0, 0, 3, 2]}], remarks)
    np.testing.assert_array_equal(found == 255, box(0, 2, 0, 3) & ~box(1, 6, 2, 9))
    assert remarks == [("outline left out", "annotation 9: a box alone, which is ignored in the mask")]
    assert rasterise([outline, boxes], 8, 10, remarks) is None
    assert remarks[1][1] == "annotation 9 has no outline and no box"


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


def test_images_that_the_file_does_not_list_are_counted(tmp_path):
    for name in ("a.jpg", "sub/b.jpg", "sub/c.JPG", "d.png", ".hidden/e.png", "notes.txt", "unknown"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = [{"id": 1, "file_name": "./a.jpg"}, {"id": 2, "file_name": "sub/b.jpg"}]
    path = coco_file(tmp_path, [], images=images)
    assert dict(read_coco(tmp_path, path).passed_over) == {"not listed": 2}
    # An entry that fails is in errors.parquet.
    path = coco_file(tmp_path, [], images=[*images, {"id": 2, "file_name": "sub/c.JPG"}])
    assert dict(read_coco(tmp_path, path).passed_over) == {"not listed": 1}
    path = coco_file(tmp_path, [], images=[{"id": k, "file_name": n} for k, n in enumerate(LISTED)])
    assert read_coco(tmp_path, path).passed_over == {}


LISTED = ("a.jpg", "sub/b.jpg", "sub/c.JPG", "d.png")


def test_a_folder_in_a_store_is_not_listed(tmp_path):
    folder = parse_path("memory://listing/images")
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    source = read_coco(folder, coco_file(tmp_path, []))
    assert source.passed_over == {}
    assert source.remarks == [
        f"images in {folder} that {tmp_path}/instances.json doesn't list were not counted"
    ]
