"""VOC: a hand-made tree, and the genuine images where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_wsss.data.images import encode_mask
from ray_wsss.data.voc import VOC_CLASS_NAMES, read_voc
from ray_wsss.errors import UserError

GENUINE = Path(__file__).parents[3] / "../shared/data/voc/VOC2012"

XML = """<annotation><size><width>10</width><height>8</height><depth>3</depth></size>
<object><name>person</name><part><name>head</name></part><difficult>1</difficult></object>
<object><name>cat</name></object><object><name>cat</name></object></annotation>"""


@pytest.fixture
def root(tmp_path) -> Path:
    for folder in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Segmentation",
        "ImageSets/Main",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\nb\n\nc\nd\na\n")
    (tmp_path / "ImageSets/Main/cat_val.txt").write_text("a  1\nb -1\n")
    (tmp_path / "Annotations/a.xml").write_text(XML)
    mask = np.zeros((8, 10), np.uint8)
    mask[0], mask[1], mask[2] = 20, 1, 255
    (tmp_path / "SegmentationClass/b.png").write_bytes(encode_mask(mask))
    (tmp_path / "SegmentationClass/d.png").write_bytes(b"")
    return tmp_path


def test_labels_come_from_xml_else_mask_else_nowhere(root):
    source = read_voc(root, "val")
    class_names, (a, b, c, d) = source.class_names, source.rows
    assert len(class_names) == 20
    assert [class_names[label] for label in a.image_labels or ()] == ["cat", "person"]
    assert (a.stated_hw, a.mask_path) == ((8, 10), None)
    assert (b.image_labels, b.mask_path) == ((0, 19), str(root / "SegmentationClass/b.png"))
    assert (c.image_labels, c.mask_path, c.error) == (None, None, None)
    assert d.error == "mask d.png: empty file"


def test_no_object_is_none_of_the_classes_and_no_source_is_unknown(root):
    start = XML.index("<object>")
    (root / "Annotations/a.xml").write_text(XML[:start] + "</annotation>")
    for name, value in (("b", 0), ("d", 255)):
        (root / f"SegmentationClass/{name}.png").write_bytes(encode_mask(np.full((8, 10), value, np.uint8)))
    half = np.full((8, 10), 255, np.uint8)
    half[0, 0] = 0
    (root / "SegmentationClass/e.png").write_bytes(encode_mask(half))
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\nc\nd\ne\n")
    # In d, every pixel of the mask is ignored, so it tells nothing.
    assert [row.image_labels for row in read_voc(root, "val").rows] == [(), (), None, None, ()]


def test_a_per_class_set_of_main_gives_names_only(root):
    assert [row.image_id for row in read_voc(root, "cat_val").rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("xml", "message"), [("<annotation>", "not valid XML"), (XML.replace(">cat<", ">cta<"), "class 'cta'")]
)
def test_bad_xml_is_an_error_row(root, xml, message):
    (root / "Annotations/a.xml").write_text(xml)
    rows = read_voc(root, "val").rows
    assert message in (rows[0].error or "")
    assert rows[1].error is None


def test_a_name_that_leaves_the_folder_is_an_error_row(root):
    (root / "ImageSets/Main/odd.txt").write_text("../../x\n")
    assert "leaves the folder" in (read_voc(root, "odd").rows[0].error or "")


def test_unusable_folders_are_user_errors(root, tmp_path):
    with pytest.raises(UserError, match="no image set 'test'; expected one of: cat_val, val"):
        read_voc(root, "test")
    with pytest.raises(UserError, match="has no JPEGImages folder"):
        read_voc(tmp_path / "ImageSets")


@pytest.mark.skipif(not GENUINE.is_dir(), reason="genuine VOC images are not on this machine")
def test_genuine_images():
    rows = {row.image_id: row for split in ("train", "val") for row in read_voc(GENUINE, split).rows}.values()
    assert len(rows) == 4
    for row in rows:
        assert row.error is None
        with Image.open(GENUINE / f"SegmentationClass/{row.image_id}.png") as mask:
            values = set(np.unique(np.asarray(mask)).tolist()) - {0, 255}
        assert values <= {label + 1 for label in row.image_labels or ()}
        assert row.image_labels
    planes = next(row for row in rows if row.image_id == "2007_000032")
    assert {VOC_CLASS_NAMES[label] for label in planes.image_labels or ()} == {"aeroplane", "person"}
