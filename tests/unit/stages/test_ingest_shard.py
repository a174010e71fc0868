"""From source rows to a data set on disk, good rows and bad."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.data.coco import read_coco
from ray_wsss.data.image_files.near_duplicates import perceptual_hash
from ray_wsss.data.images import decode_image, decode_mask, encode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata, SourceRow
from ray_wsss.data.source import Source
from ray_wsss.data.voc import read_voc
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import (
    IngestShard,
    ShardSummary,
    begin_ingest,
    describe_ingest,
    finish_ingest,
    plan_shards,
    summarise,
    to_json,
    to_summary,
)

SHARED = Path(__file__).parents[3] / "../shared/data"
CATS = Source(kind="csv", class_names=["cat"], rows=[])


def jpeg(height: int = 8, width: int = 10, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def row(path: Path, **fields) -> SourceRow:
    return SourceRow(image_id=path.name, path=str(path), **fields)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def ingest_one(tmp_path: Path, source: SourceRow, class_count: int = 254) -> dict | str:
    """The stored row, or the reason why there is none."""
    summary = IngestShard(tmp_path / "out", class_count)([source], 0)
    if summary.errors:
        assert not (tmp_path / "out").exists()
        return summary.errors[0][2]
    return ShardReader(tmp_path / "out").read(0)


def test_bytes_labels_and_size_are_stored(tmp_path):
    data = jpeg()
    stored = ingest_one(tmp_path, row(put(tmp_path / "a.jpg", data), image_labels=(4, 2)))
    assert stored == {
        "image_id": "a.jpg",
        "image": data,
        "orientation": 1,
        "height": 8,
        "width": 10,
        "image_labels": [2, 4],
        "mask": None,
        "perceptual_hash": perceptual_hash(decode_image(data)),
        "objects": None,
    }
    path = tmp_path / "out/shards/part-00000.parquet"
    assert pq.read_schema(path).equals(IMAGE_SCHEMA)


@pytest.mark.parametrize(
    ("stated_hw", "orientation", "stored_hw"),
    [(None, 6, (10, 8)), ((10, 8), 6, (10, 8)), ((8, 10), 1, (8, 10))],
)
def test_the_orientation_that_matches_the_annotations_wins(tmp_path, stated_hw, orientation, stored_hw):
    path = put(tmp_path / "a.jpg", jpeg(orientation=6))
    stored = ingest_one(tmp_path, row(path, stated_hw=stated_hw))
    assert isinstance(stored, dict)
    assert (stored["orientation"], stored["height"], stored["width"]) == (orientation, *stored_hw)
    assert decode_image(stored["image"], stored["orientation"]).shape[:2] == stored_hw


def test_a_mask_states_the_size_where_nothing_else_does(tmp_path):
    path = put(tmp_path / "a.jpg", jpeg(orientation=6))
    png = encode_mask(np.full((8, 10), 3, np.uint8))
    stored = ingest_one(tmp_path, row(path, mask_path=str(put(tmp_path / "m.png", png))))
    assert isinstance(stored, dict)
    assert (stored["orientation"], stored["mask"]) == (1, png)


def test_coco_annotations_are_rasterised(tmp_path):
    path = put(tmp_path / "a.jpg", jpeg())
    instance = {
        "id": 1,
        "class_index": 5,
        "iscrowd": False,
        "segmentation": [[0, 0, 4, 0, 4, 8, 0, 8]],
    }
    stored = ingest_one(tmp_path, row(path, annotations=[instance], image_labels=(5,)))
    assert isinstance(stored, dict)
    mask = decode_mask(stored["mask"])
    assert (mask[:, :4] == 6).all()
    assert (mask[:, 4:] == 0).all()


def test_reasons(tmp_path):
    good = put(tmp_path / "good.jpg", jpeg())
    mask = str(put(tmp_path / "m.png", encode_mask(np.full((8, 10), 7, np.uint8))))
    small = str(put(tmp_path / "small.png", encode_mask(np.zeros((4, 4), np.uint8))))
    cases = [
        (row(put(tmp_path / "cut.jpg", jpeg(200, 200)[:5000])), "truncated JPEG"),
        (row(put(tmp_path / "zero.jpg", b"")), "empty file"),
        (row(put(tmp_path / "text.jpg", b"hello")), "not an image"),
        (row(tmp_path / "missing.jpg"), "no such file: missing.jpg"),
        (row(tmp_path), "can't be read: Is a directory"),
        (row(good, error="path leaves the folder"), "path leaves the folder"),
        (row(good, stated_hw=(9, 10)), "the image is 10x8 pixels, its annotations state 10x9"),
        (row(good, mask_path=small), "the image is 10x8 pixels, its annotations state 4x4"),
        (row(good, mask_path=small, stated_hw=(8, 10)), "the mask is 4x4 pixels, the image 10x8"),
        (row(good, mask_path=mask), "the mask holds label 7; expected 0 to 6, or 255"),
        (row(good, mask_path=str(good)), "ground-truth mask: not an image"),
        (row(good, mask_path=str(tmp_path / "gone.png")), "no such file: gone.png"),
    ]
    for source, reason in cases:
        assert str(ingest_one(tmp_path, source, class_count=6)).startswith(reason)


def test_good_rows_survive_bad_neighbours_and_odd_names(tmp_path):
    good = [put(tmp_path / f"{k}.jpg", jpeg()) for k in range(3)]
    rows = [row(good[0], image_labels=(1,)), row(tmp_path / "x\udcff.jpg"), row(good[1])]
    rows.append(row(good[2], image_labels=()))
    summary = IngestShard(tmp_path / "out")(rows, 7)
    assert (summary.images, summary.unlabelled, summary.empty, summary.with_mask) == (3, 1, 1, 0)
    assert [error[0] for error in summary.errors] == ["x\\udcff.jpg"]
    reader = ShardReader(tmp_path / "out")
    assert reader.image_ids == ["0.jpg", "1.jpg", "2.jpg"]
    assert [reader.read(k, ["image_labels"])["image_labels"] for k in range(3)] == [[1], None, []]
    assert [p.name for p in (tmp_path / "out/shards").iterdir()] == ["part-00007.parquet"]


def test_shards_of_a_sorted_source_are_mixed():
    """Folders are read class by class; every shard gets about as many images of each class."""
    rows = [row(Path(f"{k:04d}.jpg"), image_labels=(k // 1000,)) for k in range(2000)]
    shards = list(plan_shards(rows, 250))
    assert [len(shard) for shard in shards] == [250] * 8
    assert sorted((r for shard in shards for r in shard), key=lambda r: r.image_id) == rows
    for shard in shards:
        assert 80 < sum(r.image_labels == (0,) for r in shard) < 170
    assert shards == list(plan_shards(rows, 250))
    assert [r for shard in plan_shards(rows, 300) for r in shard] == [r for shard in shards for r in shard]
    assert shards != list(plan_shards(rows, 250, seed=1))
    assert list(plan_shards([], 250)) == []


def test_finish_writes_errors_and_metadata(tmp_path):
    summaries = [
        ShardSummary(images=640, unlabelled=5, empty=3, with_mask=1),
        ShardSummary(
            images=4,
            errors=[("a", "a.jpg", "empty file")],
            remarks=[("b", "b.jpg", "polygon left out", "annotation 7: 4 numbers")],
        ),
    ]
    source = replace(CATS, passed_over={".txt": 2, "": 1, "not listed": 12})
    metadata = finish_ingest(tmp_path, source, summaries, max_errors=1)
    assert metadata == DatasetMetadata.load(tmp_path)
    assert metadata.has_masks
    assert summarise(metadata) == (
        "644 images, 5 without labels (unknown), 3 with none of the classes, 1 error\n"
        "files passed over, which are no images: 2 .txt, 1 without suffix\n"
        "12 images in the folder passed over, since the source does not list them\n"
        "remarks: 1 x polygon left out"
    )
    assert describe_ingest(metadata, tmp_path).splitlines()[4:] == [
        f"{tmp_path / 'errors.parquet'} lists the images that could not be read, and why; "
        "the first is a.jpg: empty file",
        f"{tmp_path / 'remarks.parquet'} lists the images with remarks",
    ]
    assert pq.read_table(tmp_path / "errors.parquet").to_pylist() == [
        {"image_id": "a", "path": "a.jpg", "reason": "empty file"}
    ]
    assert pq.read_table(tmp_path / "remarks.parquet").to_pylist() == [
        {"image_id": "b", "path": "b.jpg", "remark": "polygon left out", "detail": "annotation 7: 4 numbers"}
    ]


@pytest.mark.parametrize(
    ("images", "max_errors", "message"),
    [
        (0, None, "all 2 images failed, the first is a.jpg: empty file"),
        (9, 1, "2 images failed; expected at most 1"),
    ],
)
def test_too_many_errors_leave_the_list_but_no_data_set(tmp_path, images, max_errors, message):
    errors = [("a", "a.jpg", "empty file"), ("b", "b.jpg", "empty file")]
    with pytest.raises(UserError, match=f"{message}.*errors.parquet"):
        finish_ingest(tmp_path, CATS, [ShardSummary(images=images, errors=errors)], max_errors)
    assert pq.read_table(tmp_path / "errors.parquet").num_rows == 2
    assert not (tmp_path / "metadata.json").exists()


def test_no_image_at_all(tmp_path):
    with pytest.raises(UserError, match="lists no images"):
        finish_ingest(tmp_path, CATS, [])


def test_classes_that_cannot_be_learned_are_warned_of(tmp_path, caplog):
    rows = [
        row(put(tmp_path / f"{k}.jpg", jpeg()), image_labels=labels)
        for k, labels in enumerate([(0,), (0, 1)])
    ]
    rows.append(row(put(tmp_path / "unknown.jpg", jpeg())))
    source = replace(CATS, class_names=["cat", "dog", "emu"])

    def warnings(found: list[SourceRow], out: Path) -> list[str]:
        caplog.clear()
        halves = [IngestShard(out, 3)(half, k) for k, half in enumerate((found[:1], found[1:]))]
        assert [to_summary(json.loads(json.dumps(to_json(half)))) for half in halves] == halves
        finish_ingest(out, source, halves)
        return [message.partition(":")[0] for message in caplog.messages]

    assert warnings(rows, tmp_path / "a") == ["every image has 'cat'", "no image has 'emu'"]
    rows.append(row(put(tmp_path / "none.jpg", jpeg()), image_labels=()))
    assert warnings(rows, tmp_path / "b") == ["no image has 'emu'"]


def test_begin_clears_an_interrupted_run_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    begin_ingest(out)
    (out / "shards/part-00009.parquet").touch()
    (out / ".metadata.json.0.tmp").touch()
    begin_ingest(out)
    assert list((out / "shards").iterdir()) == []
    finish_ingest(out, CATS, [ShardSummary(images=1)])
    with pytest.raises(UserError, match="is already a data set"):
        begin_ingest(out)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \('out'\)"):
        begin_ingest(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        begin_ingest(tmp_path / "thesis.tex")


@pytest.mark.skipif(not SHARED.is_dir(), reason="genuine COCO and VOC images are not on this machine")
def test_genuine_images(tmp_path):
    path = SHARED / "coco/annotations/instances_val.json"
    sizes = {str(i["id"]): (i["height"], i["width"]) for i in json.loads(path.read_text())["images"]}
    rows = read_coco(SHARED / "coco/images", path).rows
    summary = IngestShard(tmp_path / "coco", 80)(rows[:40], 0)
    assert (summary.images, summary.with_mask, summary.errors) == (40, 40, [])
    reader = ShardReader(tmp_path / "coco")
    for k in range(40):
        stored = reader.read(k)
        size = (stored["height"], stored["width"])
        assert size == sizes[stored["image_id"]] == decode_mask(stored["mask"]).shape

    rows = {row.image_id: row for s in ("train", "val") for row in read_voc(SHARED / "voc/VOC2012", s).rows}
    summary = IngestShard(tmp_path / "voc", 20)(list(rows.values()), 0)
    assert (summary.images, summary.unlabelled, summary.with_mask, summary.errors) == (4, 0, 4, [])
    stored = ShardReader(tmp_path / "voc").read(0)
    on_disk = SHARED / f"voc/VOC2012/SegmentationClass/{stored['image_id']}.png"
    assert stored["mask"] == on_disk.read_bytes()
