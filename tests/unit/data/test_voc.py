"""VOC: a hand-made tree, and the genuine images where they are at hand."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_wsss.data.images import decode_mask, encode_mask, voc_palette
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.source import Source
from ray_wsss.data.voc import VOC_CLASS_NAMES, read_voc
from ray_wsss.data.voc.classes import read_label_map
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import IngestShard

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


def stored(source: Source, out: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """Rows of the data set and reasons of its errors, by image id; the images are made if there are none."""
    for row in source.rows:
        if not row.error and not Path(row.path).exists():
            Image.new("RGB", (10, 8)).save(row.path)
    summary = IngestShard(out, len(source.class_names), decode_mask=source.decode_mask)(source.rows, 0)
    reader = ShardReader(out) if summary.images else None
    rows = [reader.read(k) for k in range(len(reader))] if reader else []
    return {row["image_id"]: row for row in rows}, {e[0]: e[2] for e in summary.errors}


def test_labels_come_from_xml_else_mask_else_nowhere(root, tmp_path):
    source = read_voc(root, "val")
    class_names, (a, b, *_) = source.class_names, source.rows
    assert len(class_names) == 20
    assert [class_names[label] for label in a.image_labels or ()] == ["cat", "person"]
    assert (a.stated_hw, a.mask_path) == ((8, 10), None)
    assert b.mask_path == str(root / "SegmentationClass/b.png")
    rows, errors = stored(source, tmp_path / "out")
    assert {name: row["image_labels"] for name, row in rows.items()} == {
        "a": [7, 14],
        "b": [0, 19],
        "c": None,
    }
    assert rows["b"]["mask"] == (root / "SegmentationClass/b.png").read_bytes()
    assert errors == {"d": "ground-truth mask: empty file"}


def test_no_object_is_none_of_the_classes_and_no_source_is_unknown(root, tmp_path):
    start = XML.index("<object>")
    (root / "Annotations/a.xml").write_text(XML[:start] + "</annotation>")
    for name, value in (("b", 0), ("d", 255)):
        (root / f"SegmentationClass/{name}.png").write_bytes(encode_mask(np.full((8, 10), value, np.uint8)))
    half = np.full((8, 10), 255, np.uint8)
    half[0, 0] = 0
    (root / "SegmentationClass/e.png").write_bytes(encode_mask(half))
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\nc\nd\ne\n")
    # In d, every pixel of the mask is ignored, so it tells nothing.
    labels = {"a": [], "b": [], "c": None, "d": None, "e": []}
    rows, _ = stored(read_voc(root, "val"), tmp_path / "none")
    assert {name: row["image_labels"] for name, row in rows.items()} == labels
    rows, _ = stored(read_voc(root, "val", "unknown"), tmp_path / "unknown")
    assert {name: row["image_labels"] for name, row in rows.items()} == labels | {"a": None}


def write_xmls(root: Path, **classes: str) -> None:
    """Write an XML for each image, whose objects have these classes, and a set "own" of the images."""
    for name, words in classes.items():
        objects = "".join(f"<object><name>{word}</name></object>" for word in words.split())
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets/Main/own.txt").write_text("\n".join(classes))


def test_own_classes_are_the_names_of_all_xml_files(root):
    shutil.rmtree(root / "SegmentationClass")
    write_xmls(root, x="vest", b="helmet vest")
    source = read_voc(root, "own")
    assert source.class_names == ["cat", "helmet", "person", "vest"]
    assert [row.image_labels for row in source.rows] == [(3,), (1, 3)]
    assert source.remarks == ["the classes are the 4 names in the XML files, which aren't all of VOC's 20"]


def test_masks_of_own_classes_without_a_label_map_are_refused(root):
    write_xmls(root, x="vest")
    with pytest.raises(UserError, match=r"masks and the class 'vest'.*expected a file labelmap.txt"):
        read_voc(root, "own")


COLOURS = np.array([[0, 0, 0], [250, 50, 83], [128, 0, 0], [9, 9, 9]], np.uint8)
LABEL_MAP = (
    "\ufeff# label:color_rgb:parts:actions\nbackground:0,0,0::\nvest:250,50,83::\nno vest:128,0,0:a,b:run\n"
)


def label_map() -> np.ndarray:
    found = np.zeros((8, 10), np.uint8)
    found[2:5, 3:8], found[6:, :4] = 1, 2
    return found


def palette_png(indices: np.ndarray, colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    return image


def shuffled() -> Image.Image:
    """The colours of the label map in another order, as an editor leaves them."""
    order = np.array([2, 0, 1], np.uint8)
    return palette_png(order[label_map()], COLOURS[[1, 2, 0]])


MASKS = {
    "rgb": lambda: Image.fromarray(COLOURS[label_map()]),
    "rgba": lambda: Image.fromarray(COLOURS[label_map()]).convert("RGBA"),
    "shuffled palette": shuffled,
    "palette of four bits": lambda: palette_png(label_map(), COLOURS[:3]),
    "foreign palette": lambda: palette_png(
        label_map(), COLOURS[[0, 3, 3]] + np.array([[0], [1], [2]], np.uint8)
    ),
    "grey": lambda: Image.fromarray(label_map()),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_read_by_the_colours_of_labelmap_else_by_index(root, tmp_path, kind):
    (root / "labelmap.txt").write_text(LABEL_MAP)
    write_xmls(root, x="vest")
    (root / "ImageSets/Main/own.txt").write_text("x\nb\n")
    for name in "xb":
        MASKS[kind]().save(root / f"SegmentationClass/{name}.png")
    source = read_voc(root, "own")
    rows, errors = stored(source, tmp_path / "out")
    assert (source.class_names, errors) == (["vest", "no vest"], {})
    assert [rows[name]["image_labels"] for name in "xb"] == [[0], [0, 1]]
    np.testing.assert_array_equal(decode_mask(rows["x"]["mask"]), label_map())


def test_colours_that_nobody_knows_are_error_rows(root, tmp_path):
    (root / "labelmap.txt").write_text(LABEL_MAP)
    (root / "ImageSets/Main/own.txt").write_text("b\nx\ny\na\n")
    Image.fromarray(COLOURS[[0, 3]][label_map() % 2]).save(root / "SegmentationClass/b.png")
    palette_png(label_map(), COLOURS[[0, 1, 3]]).save(root / "SegmentationClass/x.png")
    Image.fromarray(label_map() * 2).save(root / "SegmentationClass/y.png")
    _, errors = stored(read_voc(root, "own"), tmp_path / "out")
    strange = "ground-truth mask: the mask has the colour 9,9,9; expected those of labelmap.txt"
    assert (errors["b"], errors["x"]) == (strange, strange)
    assert errors["y"] == "ground-truth mask: the mask holds label 4; expected one of 0, 1, 2, 255"
    assert errors["a"] == "a.xml has class 'person'; expected one of labelmap.txt"


@pytest.mark.parametrize("kind", ["rgb", "shuffled"])
def test_masks_in_vocs_colours_need_no_label_map(root, tmp_path, kind):
    labels = np.array([0, 1, 20, 255], np.uint8)[np.arange(80).reshape(8, 10) % 4]
    mask = Image.fromarray(voc_palette()[labels])
    (mask.quantize(4) if kind == "shuffled" else mask).save(root / "SegmentationClass/b.png")
    rows, _ = stored(read_voc(root, "val"), tmp_path / "out")
    np.testing.assert_array_equal(decode_mask(rows["b"]["mask"]), labels)
    assert rows["b"]["image_labels"] == [0, 19]


@pytest.mark.parametrize(
    ("text", "names", "of_index"),
    [
        ("a:::\nb\n", ["a", "b"], {0: 0, 1: 1, 2: 2, 255: 255}),
        ("a:::\nbackground:::\nvoid\nb", ["a", "b"], {0: 1, 1: 0, 2: 255, 3: 2, 255: 255}),
    ],
)
def test_a_label_map_without_colours_gives_indices(tmp_path, text, names, of_index):
    path = tmp_path / "labelmap.txt"
    path.write_text(text)
    class_names, masks = read_label_map(path)
    assert (class_names, masks.of_index, masks.of_colour) == (names, of_index, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:1,2::\n", r"the line 'a:1,2::'; expected 'name:red,green,blue::'"),
        ("a:1,2,256::\n", "the line"),
        ("a:1,2,x::\n", "the line"),
        ("a:1,2,3::\na:1,2,4::\n", "repeated class name"),
        ("a:1,2,3::\nb:1,2,3::\n", "gives 'b' the colour of another label"),
        ("background:0,0,0::\n", "0 classes"),
        ("\udcff", "can't be read"),
    ],
)
def test_bad_label_maps_are_user_errors(tmp_path, text, message):
    path = tmp_path / "labelmap.txt"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=f"labelmap.txt.*{message}"):
        read_label_map(path)


def test_images_of_any_suffix(root):
    files = ["a.PNG", "b.jpg", "b.tif", "b.txt", "c.bmp", "c.tif", "d.e.webp", "sub/f g.png", "h", "c 1.gif"]
    for name in files:
        (root / "JPEGImages" / name).parent.mkdir(exist_ok=True)
        (root / "JPEGImages" / name).touch()
    (root / "Annotations/c.xml").write_text("<annotation><filename>c.tif</filename></annotation>")
    (root / "Annotations/i.xml").write_text("<annotation><filename>h</filename></annotation>")
    lines = ["a 1", "b", "c -1", "d.e.webp", '"sub/f g"', "i", "c 1", "gone"]
    (root / "ImageSets/Main/own.txt").write_text("\n".join(lines))
    rows = {row.image_id: row for row in read_voc(root, "own").rows}
    assert {name: row.path.removeprefix(f"{root}/JPEGImages/") for name, row in rows.items()} == {
        "a": "a.PNG",
        "b": "b.jpg",
        "c": "c.tif",
        "d.e": "d.e.webp",
        "sub/f g": "sub/f g.png",
        "i": "h",
        "c 1": "c 1.gif",
        "gone": "gone.jpg",
    }
    assert not any(row.error for row in rows.values())
    (root / "Annotations/c.xml").unlink()
    rows = {row.image_id: row for row in read_voc(root, "own").rows}
    assert rows["c"].error == "JPEGImages has several files of this name: c.bmp, c.tif; expected one"


def test_boxes_tell_which_way_round_an_image_is(root, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "ImageSets/Main/own.txt").write_text("x")
    for name, edges, size in (("tall", (5, 60, 20, 95), (100, 40)), ("wide", (60, 5, 95, 20), (40, 100))):
        tags = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), edges))
        (root / "Annotations/x.xml").write_text(
            "<annotation><size><width>100</width><height>40</height></size>"
            f"<object><name>cat</name><bndbox>{tags}</bndbox></object></annotation>"
        )
        Image.new("RGB", (100, 40)).save(root / "JPEGImages/x.jpg", exif=exif)
        rows, _ = stored(read_voc(root, "own"), tmp_path / name)
        assert (rows["x"]["height"], rows["x"]["width"], rows["x"]["mask"]) == (*size, None)


def test_a_per_class_set_of_main_gives_names_only(root):
    assert [row.image_id for row in read_voc(root, "cat_val").rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", "not valid XML"),
        ('<?xml version="1.0" encoding="martian"?><annotation/>', "not valid XML"),
        (XML.replace(">cat<", "> <"), "has an object without a name"),
    ],
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
def test_genuine_images(tmp_path):
    found = {row.image_id: row for split in ("train", "val") for row in read_voc(GENUINE, split).rows}
    rows, errors = stored(replace(read_voc(GENUINE, "val"), rows=list(found.values())), tmp_path)
    assert (len(rows), errors) == (4, {})
    for name, row in rows.items():
        path = GENUINE / f"SegmentationClass/{name}.png"
        with Image.open(path) as mask:
            values = set(np.unique(np.asarray(mask)).tolist()) - {0, 255}
        assert values <= {label + 1 for label in row["image_labels"]}
        assert row["image_labels"]
        assert row["mask"] == path.read_bytes()
    planes = rows["2007_000032"]["image_labels"]
    assert {VOC_CLASS_NAMES[label] for label in planes} == {"aeroplane", "person"}


def test_a_label_map_with_more_classes_than_masks_have_room_for(tmp_path):
    path = tmp_path / "labelmap.txt"
    path.write_text("background:::\n" + "".join(f"class {k}:::\n" for k in range(254)) + "void:::\n")
    assert len(read_label_map(path)[0]) == 254
    path.write_text("background:::\n" + "".join(f"class {k}:::\n" for k in range(255)))
    with pytest.raises(UserError, match=r"has 255 classes; VOC's masks have room for 254"):
        read_label_map(path)
