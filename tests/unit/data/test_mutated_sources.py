"""Sources with mutations: no traceback, and every image ends in the data set or in errors.parquet.

The full size, 2,000 cases: pytest -m slow tests/unit/data/test_mutated_sources.py
"""

import csv
import io
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_wsss.data.coco import encode_rle, read_coco
from ray_wsss.data.csv_labels import read_csv
from ray_wsss.data.label_studio import encode_brush, read_label_studio
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.source import Source
from ray_wsss.data.voc import read_voc
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import IngestShard, begin_ingest, finish_ingest

FILES = ("a.jpg", "b.png", "c.jpg")
SQUARE = [2, 2, 9, 2, 9, 7, 2, 7]


def cases(quick: int, full: int) -> Callable[[Any], Any]:
    """Runs a test with few cases, and with all of them behind the marker ``slow``."""
    sizes = [pytest.param(quick, id="quick"), pytest.param(full, id="full", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("count", sizes)


def for_each(strategy: st.SearchStrategy[Any], count: int, check: Callable[[Any], None]) -> None:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    # Without shrinking: the mutations are few and small, and each case writes files.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    options = settings(max_examples=count, suppress_health_check=health, phases=phases)
    options(given(strategy)(check))()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of 12 x 10 pixels; EXIF turns the last one to 10 x 12."""
    folder = tmp_path_factory.mktemp("images")
    exif = Image.Exif()
    exif[0x0112] = 6
    for seed, name in enumerate(FILES):
        pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8)
        options: dict[str, Any] = {"exif": exif} if name == "c.jpg" else {}
        Image.fromarray(pixels).save(folder / name, **options)
    return folder


def unless_refused(read: Callable[[], Source]) -> Source | None:
    try:
        return read()
    except UserError:
        return None


def ingested(source: Source, folder: Path) -> tuple[list[str], list[str]]:
    """Ids of the images in the data set and of those in errors.parquet."""
    out = folder / "out"
    begin_ingest(out)
    assert json.dumps([asdict(row) for row in source.rows])  # so that Ray's tasks can be given them
    summary = IngestShard(out, len(source.class_names), decode_mask=source.decode_mask)(source.rows, 0)
    try:
        finish_ingest(out, source, [summary])
    except UserError:
        assert not summary.images
    good = ShardReader(out).image_ids if summary.images else []
    errors = pq.read_table(out / "errors.parquet").to_pylist()
    assert all(error["reason"] for error in errors)
    return good, [error["image_id"] for error in errors]


# --- Mutations of anything made of lists and dicts -----------------------------------------------

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([0.5, 12.0, float("nan"), float("inf"), -1e300, 10**30, 2**63]),
    st.sampled_from(["", "1", "1.0", "none", "../x", "a.jpg", "b'0'", "\ud800", "\0", "é", "background"]),
    st.sampled_from(
        [[], [[]], {}, [SQUARE], SQUARE, [1, 2, 3, 4], [SQUARE, [1, 2, 3, 4]], [None], {"size": 3}]
    ),
    st.sampled_from([{"size": [10, 12], "counts": [120]}, {"size": [12, 10], "counts": "0"}, [[[[[[1]]]]]]]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inside for found in [(*path, key), *places(item, (*path, key))]]


def mutate(content: Any, steps: list[tuple[int, str, Any]]) -> Any:
    """A copy in which some places are replaced, deleted, or written twice."""
    content = deepcopy(content)
    for number, kind, junk in steps:
        found = places(content)
        if not found:
            break
        *way, key = found[number % len(found)]
        parent = content
        for step in way:
            parent = parent[step]
        if kind == "delete":
            del parent[key]
        elif kind == "repeat" and isinstance(parent, list):
            parent.append(deepcopy(parent[key]))
        else:
            parent[key] = deepcopy(junk)  # hypothesis gives the same list again
    return content


STEPS = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["replace", "replace", "delete", "repeat"]), JUNK),
    min_size=1,
    max_size=4,
)

# --- COCO ----------------------------------------------------------------------------------------


def coco() -> dict[str, Any]:
    mask = np.zeros((10, 12), np.uint8)
    mask[3:6, 2:8] = 1
    annotation = {"iscrowd": 0, "bbox": [2, 2, 7, 5]}
    return {
        "categories": [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets"},
            {"id": 2, "name": "dog", "supercategory": "pets"},
        ],
        "images": [{"id": k, "file_name": n, "width": 12, "height": 10} for k, n in enumerate(FILES, 1)],
        "annotations": [
            annotation | {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]},
            annotation | {"id": 2, "image_id": 1, "category_id": 2, "segmentation": encode_rle(mask)},
            annotation | {"id": 3, "image_id": 2, "category_id": 2, "segmentation": SQUARE},
            annotation | {"id": 4, "image_id": 3, "category_id": 1, "segmentation": None},
        ],
    }


@cases(60, 1000)
def test_coco(images: Path, count: int) -> None:
    def check(steps: list[tuple[int, str, Any]]) -> None:
        content = mutate(coco(), steps)
        with TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "a.json").write_text(json.dumps(content))
            source = unless_refused(lambda: read_coco(images, folder / "a.json"))
            if source is None:
                return
            good, bad = ingested(source, folder)
            assert len(good) == len(set(good))
            listed = {json.dumps(entry, sort_keys=True) for entry in content["images"]}
            assert len(good) + len(bad) >= len(listed)
            # An image is lost neither when its own entry is odd nor when one beside it is.
            named = {str(e["id"]) for e in content["images"] if type(e.get("id")) in (int, str)}
            assert {text.encode("utf-8", "backslashreplace").decode() for text in named} <= {*good, *bad}

    for_each(STEPS, count, check)


# --- Label Studio --------------------------------------------------------------------------------


def label_studio() -> list[dict[str, Any]]:
    mask = np.zeros((10, 12), np.bool_)
    mask[3:6, 2:8] = True
    brush = {"format": "rle", "rle": list(encode_brush(mask)), "brushlabels": ["cat"]}
    points = {"points": [[10, 10], [60, 10], [60, 70]], "polygonlabels": ["dog"]}
    place = {"x": 50, "y": 50, "rotation": 10}
    box = place | {"width": 30, "height": 20, "rectanglelabels": ["cat"]}
    ellipse = place | {"radiusX": 30, "radiusY": 20, "ellipselabels": ["cat"]}
    regions = [
        {"id": k, "type": next(n for n in v if n.endswith("labels")), "value": v, "image_rotation": 0}
        | {"original_width": 12, "original_height": 10}
        for k, v in enumerate((brush, points, box, ellipse))
    ]
    # As shown: EXIF turns the last image.
    turned = {**regions[1], "original_width": 10, "original_height": 12}
    choices = {"id": "c", "type": "choices", "value": {"choices": ["dog"]}}
    return [
        {"data": {"image": "/data/upload/1/0123abcd-a.jpg"}, "annotations": [{"result": regions}]},
        {"data": {"image": "b.png"}, "annotations": [], "predictions": [{"result": [regions[0]]}]},
        {"data": {"image": "/data/local-files/?d=c.jpg"}, "annotations": [{"result": [turned, choices]}]},
    ]


@cases(50, 1000)
def test_label_studio(images: Path, count: int) -> None:
    def check(steps: list[tuple[int, str, Any]]) -> None:
        content = mutate(label_studio(), steps)
        with TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "tasks.json").write_text(json.dumps(content))
            source = unless_refused(lambda: read_label_studio(folder / "tasks.json", images))
            if source is None:
                return
            good, bad = ingested(source, folder)
            assert len(good) == len(set(good))
            assert len(good) + len(bad) == len(content)

    for_each(STEPS, count, check)


# --- VOC -----------------------------------------------------------------------------------------

XML = """<annotation><filename>{file}</filename><size><width>12</width><height>10</height></size>
<object><name>cat</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>7</ymax></bndbox></object>
<object><name>dog</name></object></annotation>"""
TOKENS = [
    "<object>",
    "</name>",
    "cat",
    "<name>vest</name>",
    "12",
    "-1",
    "&",
    "<",
    "\0",
    "é",
    "",
    "nan",
    "b.png",
]


@cases(30, 400)
def test_voc(images: Path, count: int) -> None:
    cuts = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 30), st.sampled_from(TOKENS)), max_size=4)
    wrongs = st.fixed_dictionaries({"xml": cuts, "set": cuts, "mask": cuts, "labelmap": cuts})

    def check(wrong: dict[str, list[tuple[int, int, str]]]) -> None:
        def cut(text: str, kind: str) -> bytes:
            for at, length, token in wrong[kind]:
                at %= max(1, len(text))
                text = text[:at] + token + text[at + length :]
            return text.encode("latin-1" if kind == "mask" else "utf-8")

        with TemporaryDirectory() as name:
            root = Path(name) / "voc"
            for part in ("Annotations", "SegmentationClass", "ImageSets/Main"):
                (root / part).mkdir(parents=True)
            (root / "JPEGImages").symlink_to(images)
            (root / "Annotations/a.xml").write_bytes(cut(XML.format(file="a.jpg"), "xml"))
            (root / "Annotations/c.xml").write_text(XML.format(file="c.jpg"))
            buffer = io.BytesIO()
            Image.new("L", (12, 10), 1).save(buffer, "PNG")
            (root / "SegmentationClass/b.png").write_bytes(cut(buffer.getvalue().decode("latin-1"), "mask"))
            (root / "ImageSets/Main/train.txt").write_bytes(cut("a\nb\nc\n", "set"))
            if wrong["labelmap"]:
                lines = "background:0,0,0::\ncat:1,1,1::\ndog:2,2,2::\n"
                (root / "labelmap.txt").write_bytes(cut(lines, "labelmap"))
            source = unless_refused(lambda: read_voc(root, "train"))
            if source is None:
                return
            good, bad = ingested(source, Path(name))
            if not wrong["set"]:
                assert sorted([*good, *bad]) == ["a", "b", "c"]
            assert len(good) + len(bad) == len(source.rows)

    for_each(wrongs, count, check)


# --- CSV and images ------------------------------------------------------------------------------


@cases(20, 300)
def test_csv(images: Path, count: int) -> None:
    cells = st.sampled_from(
        [*FILES, "gone.jpg", "cat", "cat;dog", "", " ", ";", '"', "\ufeff", "../x.jpg", "a\nb"]
    )
    tables = st.lists(st.lists(cells, min_size=1, max_size=3), max_size=5)

    def check(table: list[list[str]]) -> None:
        with TemporaryDirectory() as name:
            path = Path(name) / "table.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([[f, "cat"] for f in FILES] + table)
            source = unless_refused(lambda: read_csv(path, images))
            if source is None:
                return
            good, bad = ingested(source, Path(name))
            assert {*FILES} <= {*good, *bad}
            assert len(good) + len(bad) == len(source.rows)

    for_each(tables, count, check)


@cases(20, 300)
def test_image_bytes(images: Path, count: int) -> None:
    edits = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=6)), min_size=1)

    def check(edit: tuple[str, list[tuple[int, int, bytes]]]) -> None:
        file_name, cuts = edit
        data = (images / file_name).read_bytes()
        for at, length, insert in cuts:
            at %= len(data) + 1
            data = data[:at] + insert + data[at + length :]
        with TemporaryDirectory() as name:
            (Path(name) / "x.jpg").write_bytes(data)
            table = Path(name) / "table.csv"
            table.write_text("x.jpg,cat\n")
            good, bad = ingested(read_csv(table, Path(name)), Path(name))
            assert good + bad == ["x.jpg"]

    for_each(st.tuples(st.sampled_from(FILES), edits), count, check)
