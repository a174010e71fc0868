"""YOLO data sets: where splits, images and label files are, and what a line says."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ray_wsss.data.reader import ShardReader
from ray_wsss.data.sources.yolo import read_yolo
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import IngestShard

YAML = "path: .\ntrain: images/train\nval: [images/val, images/more]\nnames:\n  0: cat\n  1: dog\n"


def make(root, labels: dict[str, str | None], yaml: str = YAML, folder: str = "train"):
    """An image of 20 x 10 px for each entry, with a label file unless its text is None."""
    for name, text in labels.items():
        image = root / "images" / folder / name
        label = (root / "labels" / folder / name).with_suffix(".txt")
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(image)
        if text is not None:
            label.write_text(text)
    (root / "data.yaml").write_text(yaml)
    return root / "data.yaml"


def by_id(source) -> dict:
    return {row.image_id: row for row in source.rows}


def test_boxes_are_labels(tmp_path):
    data = make(
        tmp_path, {"a.jpg": "1 .5 .5 .2 .2\n0 .1 .1 .1 .1\n1 .2 .2 .1 .1\n", "sub/b.png": "0 0 0 1 1"}
    )
    source = read_yolo(data)
    assert (source.kind, source.class_names) == ("yolo", ["cat", "dog"])
    rows = by_id(source)
    assert {name: row.image_labels for name, row in rows.items()} == {"a.jpg": (0, 1), "sub/b.png": (0,)}
    assert IngestShard(tmp_path / "out", 2)(source.rows, 0).with_mask == 0


@pytest.mark.parametrize(("unannotated", "expected"), [("none", ()), ("unknown", None)])
def test_images_without_a_line(tmp_path, unannotated, expected):
    data = make(tmp_path, {"a.jpg": "", "b.jpg": None, "c.jpg": "\n"})
    assert [row.image_labels for row in read_yolo(data, "train", unannotated).rows] == [expected] * 3


def test_polygons_become_masks(tmp_path):
    polygons = "1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n0 0.8 0.5 1.2 0.5 1.2 1.3 0.8 1.3\n"
    source = read_yolo(make(tmp_path, {"a.png": polygons, "mixed.png": polygons + "0 .5 .5 .1 .1\n"}))
    row, mixed = source.rows
    assert row.remarks == (("polygon clipped to its image", "line 2 of the label file"),)
    assert mixed.image_labels == (0, 1)
    assert IngestShard(tmp_path / "mixed", 2)([mixed], 0).with_mask == 0
    summary = IngestShard(tmp_path / "out", 2)([row], 0)
    assert (summary.with_mask, len(summary.remarks)) == (1, 1)
    expected = np.zeros((10, 20), np.uint8)
    expected[2:7, 2:11] = 2
    expected[5:, 16:] = 1
    mask = ShardReader(tmp_path / "out").read(0)["mask"]
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(mask))), expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 .5 .5 .1 .1", "line 2 of its label file has class 2; expected 0 to 1"),
        ("0.5 .5 .5 .1 .1", "has class 0.5"),
        ("0 .5 .5 .1", "has 4 numbers"),
        ("0 .5 .5 .1 .1 .9", "has 6 numbers"),
        ("nan .5 .5 .1 .1", "has 5 numbers"),
        ("0 .5 nan .1 .1 .3 .3", "has 7 numbers"),
        ("cat .5 .5 .1 .1", "is 'cat .5 .5 .1 .1'; expected numbers"),
        ("0 320 240 10 10", "has 320; expected fractions"),
        ("0 .5 .5 .1 .ü", "can't be read"),
    ],
)
def test_a_malformed_line_is_an_error_row(tmp_path, line, message):
    bad, good = read_yolo(
        make(tmp_path, {"a.jpg": f"0 .5 .5 .1 .1\n{line}\n", "b.jpg": "0 .5 .5 .1 .1"})
    ).rows
    assert message in (bad.error or "")
    assert (good.error, good.image_labels) == (None, (0,))


def test_splits_of_several_folders_and_of_lists(tmp_path):
    make(tmp_path, {"a.jpg": "0 .5 .5 .1 .1"}, folder="val")
    data = make(tmp_path, {"a.jpg": "1 .5 .5 .1 .1"}, folder="more")
    rows = by_id(read_yolo(data, "val"))
    assert {name: row.image_labels for name, row in rows.items()} == {
        "images/val/a.jpg": (0,),
        "images/more/a.jpg": (1,),
    }
    (tmp_path / "list.txt").write_text("./images/val/a.jpg\nimages/more/a.jpg\n../outside.jpg\n")
    data.write_text(YAML.replace("images/train", "list.txt"))
    rows = by_id(read_yolo(data))
    assert (rows["images/val/a.jpg"].image_labels, rows["images/more/a.jpg"].image_labels) == ((0,), (1,))
    assert "leaves the folder" in (rows["../outside.jpg"].error or "")


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../images/train\nnames: [cat, dog]\n",  # as Roboflow writes it
        "path: /nowhere/on/this/machine\ntrain: images/train\nnames: [cat, dog]\n",
        "train: images/train\nnames: {0: cat, 1: dog}\nnc: 2\n",
    ],
)
def test_paths_as_tools_write_them(tmp_path, yaml):
    source = read_yolo(make(tmp_path, {"a.jpg": "1 .5 .5 .1 .1"}, yaml))
    assert [row.image_labels for row in source.rows] == [(1,)]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("- 1", "holds no keys"),
        ("train: images/train\nnc: 3\n", "'names' is None"),
        ("train: images/train\nnames: {1: cat}\n", "numbered from 0"),
        ("val: images/train\nnames: [cat]\n", "no split 'train'; expected one of: val"),
        ("train: images/none\nnames: [cat]\n", "images/none; expected a folder"),
        ("train: !!python/object/apply:os.getcwd []\nnames: [cat]\n", "is not valid YAML"),
    ],
)
def test_malformed_yaml_is_a_user_error(tmp_path, yaml, message):
    with pytest.raises(UserError, match=message):
        read_yolo(make(tmp_path, {"a.jpg": ""}, yaml))
    with pytest.raises(UserError, match=r"absent.yaml can't be read"):
        read_yolo(tmp_path / "absent.yaml")
