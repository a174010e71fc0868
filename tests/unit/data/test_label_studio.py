"""Label Studio's JSON export: which images, which annotation, and what its results say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ray_wsss.data.images import decode_mask
from ray_wsss.data.label_studio import encode_brush, read_label_studio
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import SourceRow
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import IngestShard, ShardSummary

HEIGHT, WIDTH = 40, 80
SIZE = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}


def region(kind: str, names: list[str], value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return SIZE | {"id": f"r{kind[0]}", "type": kind, "value": value | {kind: names}} | more


def brush(names: list[str], *mask: slice, **more: Any) -> dict[str, Any]:
    pixels = np.zeros((HEIGHT, WIDTH), np.bool_)
    pixels[mask] = True
    return region("brushlabels", names, {"format": "rle", "rle": list(encode_brush(pixels))}, **more)


def polygon(name: str, points: list[list[Any]], **more: Any) -> dict[str, Any]:
    return region("polygonlabels", [name], {"points": points, "closed": True}, **more)


def box(name: str, x: float, y: float, width: float, height: float, rotation: float = 0) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
    return region("rectanglelabels", [name], value)


def choices(*names: str, **more: Any) -> dict[str, Any]:
    return {"id": "c", "type": "choices", "from_name": "what", "value": {"choices": list(names)}} | more


def changed(result: dict[str, Any], **value: Any) -> dict[str, Any]:
    """The result, named x, with something else in its value."""
    return {**result, "id": "x", "value": {**result["value"], **value}}


CAT = brush(["cat"], slice(10, 20), slice(30, 50))
LEFT_HALF = polygon("dog", [[0, 0], [50, 0], [50, 100], [0, 100]])


def task(name: str, *results: Any, **more: Any) -> dict[str, Any]:
    """A task with one annotation."""
    return {"data": {"image": f"/data/upload/1/{name}"}, "annotations": [{"result": list(results)}]} | more


@pytest.fixture
def read(tmp_path: Path):
    """Reads tasks of images that lie beside them; a list of names makes the images."""

    def read(tasks: Any, *args: Any, images: tuple[str, ...] = ("a.png", "b.png", "c.png"), **options: Any):
        for name in images:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
        (tmp_path / "tasks.json").write_text(json.dumps(tasks))
        return read_label_studio(tmp_path / "tasks.json", *args, **options)

    return read


def ingested(row: SourceRow, out: Path) -> tuple[np.ndarray | None, ShardSummary]:
    summary = IngestShard(out, 2)([row], 0)
    assert not summary.errors
    mask = ShardReader(out).read(0)["mask"]
    return (decode_mask(mask) if mask is not None else None), summary


def remarks(summary: ShardSummary) -> list[tuple[str, str]]:
    return [(remark, detail) for _, _, remark, detail in summary.remarks]


# --- Labels and masks ----------------------------------------------------------------------------


def test_choices_are_image_labels(read, tmp_path: Path) -> None:
    source = read([task("a.png", choices("dog", "cat")), task("b.png", choices("dog")), task("c.png")])
    assert (source.kind, source.class_names) == ("label-studio", ["cat", "dog"])
    assert [row.image_labels for row in source.rows] == [(0, 1), (1,), ()]
    mask, summary = ingested(source.rows[0], tmp_path / "out")
    assert (mask, summary.remarks) == (None, [])


def test_brush_above_polygon(read, tmp_path: Path) -> None:
    (row,) = read([task("a.png", CAT, LEFT_HALF)]).rows
    assert (row.image_labels, row.stated_hw) == ((0, 1), (HEIGHT, WIDTH))
    mask, summary = ingested(row, tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, : WIDTH // 2] = 2
    expected[10:20, 30:50] = 1
    np.testing.assert_array_equal(mask, expected)
    assert summary.remarks == []


@pytest.mark.parametrize("rotation", [0, 90, 30])
def test_ellipse(read, tmp_path: Path, rotation: float) -> None:
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 25, "rotation": rotation}
    (row,) = read([task("a.png", region("ellipselabels", ["cat"], value))]).rows
    mask, _ = ingested(row, tmp_path / "out")
    large = Image.new("1", (WIDTH * 8, HEIGHT * 8))
    ImageDraw.Draw(large).ellipse((WIDTH * 8 * 0.3, HEIGHT * 8 * 0.25, WIDTH * 8 * 0.7, HEIGHT * 8 * 0.75), 1)
    # Pillow turns counter-clockwise.
    expected = np.asarray(large.rotate(-rotation))[4::8, 4::8]
    assert mask is not None
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


@pytest.mark.parametrize(
    ("rotation", "expected"), [(0, (20, 10, 16, 4)), (90, (16, 10, 4, 16)), (180, (4, 6, 16, 4))]
)
def test_box_is_ignored_in_the_mask(read, tmp_path: Path, rotation: float, expected: tuple[int, ...]) -> None:
    """Rectangles are turned clockwise about their corner."""
    alone, beside = read(
        [task("a.png", box("cat", 25, 25, 20, 10, rotation)), task("b.png", CAT, box("dog", 0, 0, 10, 10))]
    ).rows
    assert alone.annotations is not None
    np.testing.assert_allclose(alone.annotations[0]["bbox"], expected, atol=1e-9)
    mask, _ = ingested(alone, tmp_path / "alone")
    assert (alone.image_labels, mask) == ((0,), None)
    mask, _ = ingested(beside, tmp_path / "beside")
    assert mask is not None
    assert np.unique(mask[:4, :8]).tolist() == [255]
    assert np.unique(mask, return_counts=True)[1].tolist() == [HEIGHT * WIDTH - 200 - 32, 200, 32]


def test_outlines_with_labels_of_their_own(read, tmp_path: Path) -> None:
    """<Polygon> or <Brush> beside <Labels> make two results of one id."""
    labels = {**LEFT_HALF, "type": "labels", "value": {**LEFT_HALF["value"], "labels": ["dog"]}}
    of_region = choices("red", id=labels["id"])
    (row,) = read([task("a.png", {**LEFT_HALF, "type": "polygon"}, labels, of_region)]).rows
    mask, summary = ingested(row, tmp_path / "out")
    assert mask is not None
    assert mask.sum() == HEIGHT * WIDTH / 2
    assert remarks(summary) == [("result left out", "result rp is of type 'choices' of a region")]


def test_choice_without_an_object_makes_no_mask(read, tmp_path: Path) -> None:
    both, covered = read([task("a.png", CAT, choices("dog")), task("b.png", CAT, choices("cat"))]).rows
    assert both.image_labels == (0, 1)
    mask, summary = ingested(both, tmp_path / "both")
    assert mask is None
    assert remarks(summary) == [
        (
            "no mask, since nobody knows where an object is",
            "annotation 'dog' of choices has no outline and no box",
        )
    ]
    mask, summary = ingested(covered, tmp_path / "covered")
    assert (mask is None, summary.remarks) == (False, [])


def test_controls(read) -> None:
    tasks = [task("a.png", {**CAT, "from_name": "mask"}, choices("night"))]
    source = read(tasks, controls=("mask",))
    assert (source.class_names, source.rows[0].image_labels) == (["cat"], (0,))
    assert read(tasks, controls=("what",)).class_names == ["night"]


def test_object_of_several_classes_is_ignored(read, tmp_path: Path) -> None:
    (row,) = read([task("a.png", brush(["dog", "cat"], slice(4), slice(4)))]).rows
    mask, summary = ingested(row, tmp_path / "out")
    assert row.image_labels == (0, 1)
    assert mask is not None
    assert np.unique(mask, return_counts=True)[1].tolist() == [HEIGHT * WIDTH - 16, 16]
    assert remarks(summary) == [
        ("object of several classes ignored in the mask", "annotation rb: dog, cat"),
    ]


@pytest.mark.parametrize(
    ("result", "detail"),
    [
        (
            {**CAT, "id": "x", "value": {**CAT["value"], "rle": [0, 0, 1]}},
            "a brush region that ends too early",
        ),
        (
            {**CAT, "id": "x", "value": {**CAT["value"], "rle": [256]}},
            "a brush region that is no list of bytes",
        ),
        (changed(CAT, rle=[0, 0, 1]), "a brush region that ends too early"),
        (changed(CAT, rle=[256]), "a brush region that is no list of bytes"),
        (changed(CAT, format="png"), "a brush region of format 'png'"),
        ({**LEFT_HALF, "id": "x", "image_rotation": 90}, "drawn on an image turned by 90 degrees"),
        ({**LEFT_HALF, "id": "x", "original_width": None}, "no 'original_width' and 'original_height'"),
        ({**LEFT_HALF, "id": "x", "original_width": 10**30}, "no 'original_width' and 'original_height'"),
        (polygon("dog", [[0, 0], [9, 9]], id="x"), "a polygon with the points"),
        (polygon("dog", [[0, 0], [9, 9], ["1", 2]], id="x"), "'1' in place of a number in percent"),
        ({**box("dog", 1, 1, 0, 3), "id": "x"}, "a rectangle without an area"),
    ],
)
def test_a_bad_region_costs_the_mask_alone(read, tmp_path: Path, result: dict, detail: str) -> None:
    (row,) = read([task("a.png", CAT, result)]).rows
    mask, summary = ingested(row, tmp_path / "out")
    assert row.image_labels == ((0,) if "brushlabels" in result["value"] else (0, 1))
    assert mask is None
    (remark, found), (no_mask, _) = remarks(summary)
    assert remark == "outline left out"
    assert found.startswith(f"annotation x: {detail}")
    assert no_mask == "no mask, since nobody knows where an object is"


def test_results_that_are_left_out(read) -> None:
    video = region("videorectangle", ["dog"], {"x": 1, "y": 1, "width": 1}, id="k")
    no_names = changed(CAT, brushlabels=[])
    row, unknown = read([task("a.png", CAT, video, no_names, 7), task("b.png", video)]).rows
    assert [remark for remark, _ in row.remarks] == ["result left out"] * 3
    assert [detail for _, detail in row.remarks] == [
        "result k is of type 'videorectangle'",
        "result x has the brushlabels []; expected a list of names",
        "result [3] is 7; expected an object",
    ]
    assert (row.image_labels, unknown.image_labels, unknown.annotations) == ((0,), None, None)
    assert unknown.remarks[-1][0] == "labels unknown, since no result tells a class"


# --- Which annotation ----------------------------------------------------------------------------


def test_newest_annotation_that_was_not_cancelled(read) -> None:
    dated = [
        {"result": [choices("dog")], "created_at": "2024-01-02T00:00:00Z"},
        {
            "result": [choices("cat")],
            "created_at": "2024-01-01T00:00:00Z",
            "updated_at": "2024-02-01T00:00:00Z",
        },
        {"result": [choices("bird")], "created_at": "2024-03-01T00:00:00Z", "was_cancelled": True},
    ]
    undated = [{"result": [choices("dog")]}, {"result": [choices("fox")]}]
    skipped = [{"result": [], "was_cancelled": True}]
    kinds = [task("a.png", annotations=dated), task("b.png", annotations=undated)]
    kinds.append(task("c.png", annotations=skipped, predictions=[{"result": [choices("dog")]}]))
    source = read(kinds)
    assert source.class_names == ["cat", "fox"]
    assert [row.image_labels for row in source.rows] == [(0,), (1,), None]
    assert source.rows[2].remarks == (
        ("labels unknown, since the image was skipped", "1 annotations were cancelled"),
    )


def test_predictions_where_nobody_annotated(read) -> None:
    prediction = [{"result": [CAT], "model_version": "m1"}]
    source = read(
        [
            task("a.png", annotations=[], predictions=prediction),
            task("b.png", predictions=prediction),
            {"data": {"image": "c.png"}},
        ]
    )
    assert [row.image_labels for row in source.rows] == [(0,), (), None]
    assert [row.remarks for row in source.rows] == [(("labels from predictions", "of m1"),), (), ()]


@pytest.mark.parametrize(("unannotated", "labels", "objects"), [("none", (), []), ("unknown", None, None)])
def test_annotation_without_results(read, unannotated: str, labels: Any, objects: Any) -> None:
    _, row = read([task("a.png", CAT), task("b.png")], None, unannotated).rows
    assert (row.image_labels, row.annotations) == (labels, objects)


# --- Which image ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("/data/upload/3/0123abcd-a.png", "a.png"),
        ("/data/upload/3/0123abcd-b.png", "0123abcd-b.png"),
        ("/data/local-files/?d=deep%20er/b%231.png", "deep er/b#1.png"),
        ("/data/local-files/?d=other/deep%20er/b%231.png", "deep er/b#1.png"),
        ("/data/local-files?x=1&d=elsewhere%5Cb%231.png", "deep er/b#1.png"),
        ("http://studio:8080/data/local-files/?d=one/c.png&x=1", "one/c.png"),
        ("s3://bucket/two/c.png", "two/c.png"),
        ("https://host/a.png?sig=/1#x", "a.png"),
        ("deep er/b#1.png", "deep er/b#1.png"),
        ("./a.png", "a.png"),
    ],
)
def test_addresses_of_files(read, tmp_path: Path, address: str, found: str) -> None:
    files = ("a.png", "b.png", "0123abcd-b.png", "deep er/b#1.png", "one/c.png", "two/c.png")
    (row,) = read([task("", choices("cat"), data={"image": address})], tmp_path, images=files).rows
    assert (row.error, row.image_id, row.path) == (None, found, str(tmp_path / found))


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("/data/upload/1/gone.png", "no image '/data/upload/1/gone.png' in"),
        ("/data/upload/1/c.png", "has 2 files of its name (one/c.png, two/c.png)"),
        ("../../etc/passwd", "no image '../../etc/passwd' in"),
        ("data:image/png;base64," + "A" * 10_000, "no image 'data:image/png;base64,AAAA"),
        ("ftp://host/x.png", "no image 'x.png' in"),
        ("", "its 'data' has the fields 'image'; expected an address of an image"),
    ],
)
def test_addresses_of_no_file(read, tmp_path: Path, address: str, error: str) -> None:
    tasks = [task("a.png", CAT), task("", data={"image": address})]
    _, row = read(tasks, tmp_path, images=("a.png", "one/c.png", "two/c.png")).rows
    assert error in row.error
    assert len(row.error) < 300


@pytest.mark.parametrize("uri", ["https://host/a.png?sig=1", "http://host/0123abcd-a.png"])
def test_uris_are_fetched_unless_there_is_a_folder(read, tmp_path: Path, uri: str) -> None:
    tasks = [task("", CAT, data={"image": uri})]
    (row,) = read(tasks).rows
    assert (row.image_id, row.path, row.error) == (uri, uri, None)
    (row,) = read(tasks, tmp_path).rows
    assert row.path == str(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    (row,) = read(tasks, tmp_path, images=("b.png",)).rows
    assert (row.path, row.error) == (uri, None)


def test_field_that_names_the_image(read) -> None:
    data = {"note": "as in b.txt", "photo": "b.png", "mask": "c.png"}
    assert read([task("", CAT, data=data)]).rows[0].image_id == "b.png"
    assert read([task("", CAT, data=data)], image_key="mask").rows[0].image_id == "c.png"
    rows = read([task("a.png", CAT), task("", CAT, data=data)], image_key="image").rows
    assert "expected one under 'image' (--image-key)" in rows[1].error


def test_two_tasks_of_an_image_are_errors(read) -> None:
    tasks = [task("a.png", CAT), task("0123abcd-a.png", LEFT_HALF), task("b.png", CAT)]
    rows = read(tasks).rows
    error = "several tasks are of this image; expected one"
    assert [row.error for row in rows] == [error, error, None]


# --- Malformed files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (7, "the task is 7; expected an object with 'data'"),
        ({"id": 1}, "expected an object with 'data'"),
        (task("b.png", annotations={}) | {"annotations": 3}, "its 'annotations' are 3"),
        (task("b.png", annotations=[{"result": None}]), "the 'result' of its annotation is None"),
        (
            task("b.png", CAT, {**LEFT_HALF, "original_width": 99}),
            "results are of images of 80x40 and 99x40 pixels",
        ),
    ],
)
def test_malformed_tasks_are_error_rows(read, bad: Any, error: str) -> None:
    good, row = read([task("a.png", CAT), bad]).rows
    assert good.error is None
    assert error in row.error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not valid JSON"),
        ("{}", "holds a JSON dict"),
        ('[{"image": "a.png", "choice": "cat"}]', "has no task with 'data'; expected"),
        (
            '[{"image": "a.png", "choice": "cat", "annotation_id": 1}]',
            "is JSON-MIN, .*--controls",
        ),
        ('[{"data": {"image": "a.png"}}]', "has no class in any task"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_label_studio(path)
    with pytest.raises(UserError, match="can't be read"):
        read_label_studio(tmp_path / "gone.json")
    path.write_text(json.dumps([task("a.png", CAT)]))
    with pytest.raises(UserError, match="is not a folder"):
        read_label_studio(path, tmp_path / "gone")


def test_classes_of_a_file_without_results(read) -> None:
    source = read([{"data": {"image": "a.png"}}], classes=["cat", "dog"])
    assert (source.class_names, source.rows[0].image_labels) == (["cat", "dog"], None)


def test_json_min_is_the_same_as_json(read) -> None:
    """Fields as label-studio-sdk's converter writes them: one choice bare, several in an object."""
    times = {"created_at": "2024-01-01", "updated_at": "2024-01-02", "lead_time": 3.1, "annotator": 1}

    def record(number: int, name: str, **controls: Any) -> dict[str, Any]:
        return {"image": name, "caption": "cat", "id": number, "annotation_id": number, **times, **controls}

    def short(result: dict[str, Any]) -> dict[str, Any]:
        sizes = {name: result[name] for name in ("original_width", "original_height")}
        return result["value"] | sizes

    dog, square = polygon("dog", [[0, 0], [50, 0], [50, 50]]), box("emu", 10, 20, 30, 40)
    records = [
        record(1, "a.png", kind="cat"),
        record(1, "a.png", kind={"choices": ["cat", "emu"]}) | {"updated_at": "2024-01-03"},
        record(2, "b.png", mask=[short(LEFT_HALF), short(dog), short(square)]),
        record(3, "c.png"),
        record(4, "d.png", mask=[{"x": 1}]),
    ]
    tasks = [
        task("a.png", choices("cat", "emu")),
        task("b.png", LEFT_HALF, dog, square),
        task("c.png"),
        task("d.png", {"type": None, "value": {}}),
    ]
    images = ("a.png", "b.png", "c.png", "d.png")
    found, expected = read(records, controls=("kind", "mask"), images=images), read(tasks, images=images)
    assert found.class_names == expected.class_names
    for row, same in zip(found.rows, expected.rows, strict=True):
        assert (row.image_labels, row.stated_hw) == (same.image_labels, same.stated_hw)
        assert [o | {"id": 0} for o in row.annotations or ()] == [
            o | {"id": 0} for o in same.annotations or ()
        ]
    # A field that isn't named is no label.
    assert read(records, controls=("mask",)).rows[0].image_labels == ()
