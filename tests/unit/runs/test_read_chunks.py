"""Chunks: planned the same every time, read without their neighbours, decoded whatever is in them."""

import io
import struct
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide

from ray_wsss.data.images import decode_image
from ray_wsss.data.scenes import make_scene
from ray_wsss.data.schema import IMAGE_SCHEMA
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages, pack_images
from ray_wsss.runs.read_chunks import plan_chunks, read_chunk

SAM_PX = 128
NULLABLE = pa.schema([field.with_nullable(True) for field in IMAGE_SCHEMA])


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def row(image: bytes | None, image_id: str = "x", **others: Any) -> dict[str, Any]:
    return {"image_id": image_id, "image": image, "orientation": 1, "image_labels": [0], **others}


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=NULLABLE), path, **options)


def prepared(folder: Path, rows: list[dict[str, Any]], prepare: PrepareImages) -> list[PreparedImage]:
    write(folder / "shards" / "part-0.parquet", rows)
    return [image for chunk in plan_chunks(folder) for image in prepare(chunk)]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds no pixel of it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


SCENE = make_scene(3, 60, 80).image
JPEG, PNG = encoded(SCENE, "JPEG"), encoded(SCENE)
BROKEN = {
    "truncated JPEG": (row(JPEG[:900]), "truncated JPEG"),
    "truncated PNG": (row(PNG[: len(PNG) // 2]), "truncated PNG"),
    "text": (row(b"these are no pixels"), "not an image"),
    "empty": (row(b""), "empty file"),
    "null": (row(None), "no image in the row"),
    "noise": (row(np.random.default_rng(0).bytes(5000)), "not an image"),
    "too large": (row(png_header(60_000, 60_000)), "the limit is 500 megapixels"),
    "orientation": (row(PNG, orientation=9), "orientation is 9"),
    "label": (row(PNG, image_labels=[0, None]), "expected class indices"),
    "too wide": (row(encoded(np.zeros((1, 3000, 3), np.uint8))), "too thin for SAM"),
    "too high": (row(encoded(np.zeros((3000, 1, 3), np.uint8))), "too thin for SAM"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_has_its_reason_and_its_neighbours_notice_nothing(tmp_path, name):
    broken, reason = BROKEN[name]
    prepare = PrepareImages(max_side_px=64, frame=InputFrame(SAM_PX))
    images = prepared(tmp_path, [row(PNG, "before"), broken, row(JPEG, "after")], prepare)
    assert [image.image_id for image in images] == ["before", "x", "after"]
    assert [image.error is None for image in images] == [True, False, True]
    error = images[1].error
    assert error is not None
    assert reason in error
    assert (images[1].pixels, images[1].sam_pixels) == (None, None)
    assert images[2].image_hw == (60, 80)


@pytest.mark.parametrize(
    "data",
    [
        encoded(SCENE, "JPEG", "CMYK"),
        encoded(SCENE, "JPEG", "L"),
        encoded(SCENE, "PNG", "P"),
        encoded(SCENE, "PNG", "RGBA"),
        encoded((np.arange(4800).reshape(60, 80) * 13).astype(np.uint16)),
    ],
    ids=["CMYK", "grey", "palette", "RGBA", "16 bits"],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, data):
    (image,) = prepared(tmp_path, [row(data)], PrepareImages(max_side_px=100, frame=InputFrame(SAM_PX)))
    assert image.error is None
    np.testing.assert_array_equal(image.pixels, decode_image(data))


def test_rows_without_labels_or_orientation_are_fine(tmp_path):
    rows = [row(PNG, image_labels=None, orientation=None), row(PNG, orientation=0), row(PNG, orientation=6)]
    plain, zero, turned = prepared(tmp_path, rows, PrepareImages(max_side_px=100, frame=InputFrame(SAM_PX)))
    assert (plain.error, plain.image_labels, plain.image_hw) == (None, None, (60, 80))
    assert zero.image_hw == (60, 80)
    np.testing.assert_array_equal(turned.pixels, np.rot90(SCENE, -1))


def test_sizes_are_those_of_the_working_copy_and_of_sams_own_resize(tmp_path):
    (image,) = prepared(tmp_path, [row(PNG)], PrepareImages(max_side_px=40, frame=InputFrame(SAM_PX)))
    assert image.image_hw == (60, 80)
    assert image.pixels is not None
    assert image.pixels.shape == (30, 40, 3)
    np.testing.assert_array_equal(image.sam_pixels, ResizeLongestSide(SAM_PX).apply_image(SCENE))
    (image,) = prepared(tmp_path / "sam only", [row(PNG)], PrepareImages(frame=InputFrame(SAM_PX)))
    assert image.pixels is None
    assert image.sam_pixels is not None


def test_what_the_encoders_device_resizes_travels_as_it_is(tmp_path):
    rows = [row(PNG)]
    for name, most, same in (("label", 80, True), ("shrunk", 40, False), ("embed", None, False)):
        prepare = PrepareImages(max_side_px=most, frame=InputFrame(SAM_PX), resize=False)
        (image,) = prepared(tmp_path / name, rows, prepare)
        assert (image.sam_pixels is None) == same
        np.testing.assert_array_equal(image.for_sam, SCENE)
    (large,) = prepared(tmp_path / "large", rows, PrepareImages(frame=InputFrame(64), resize=False))
    np.testing.assert_array_equal(large.for_sam, ResizeLongestSide(64).apply_image(SCENE))


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=3).filter(any),
    group=st.integers(1, 40),
    size=st.integers(1, 17),
)
def test_chunks_are_the_rows_of_the_data_set(tmp_path_factory, lengths, group, size):
    folder = tmp_path_factory.mktemp("shards")
    names = [[f"{part}-{k}" for k in range(length)] for part, length in enumerate(lengths)]
    for part, ids in enumerate(names):
        rows = [row(b"", image_id) for image_id in ids]
        write(folder / f"part-{part}.parquet", rows, row_group_size=group)
    chunks = plan_chunks(folder, size)
    assert chunks == plan_chunks(folder, size)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    read = [read_chunk(chunk, ["image_id"])["image_id"].to_pylist() for chunk in chunks]
    assert [len(ids) for ids in read] == [chunk.rows for chunk in chunks]
    assert max(map(len, read)) <= size
    assert list(chain.from_iterable(read)) == list(chain.from_iterable(names))


def test_a_plan_names_the_rows_of_each_shard(tmp_path):
    for name, length in {"a": 5, "b": 0, "c": 2}.items():
        write(tmp_path / f"{name}.parquet", [row(b"")] * length)
    paths = [str(tmp_path / f"{name}.parquet") for name in "ac"]
    expected = [(0, paths[0], 0, 3), (1, paths[0], 3, 2), (2, paths[1], 0, 2)]
    assert [(c.index, c.path, c.first_row, c.rows) for c in plan_chunks(tmp_path, 3)] == expected


def test_a_data_set_that_is_none(tmp_path):
    write(tmp_path / "empty" / "part-0.parquet", [])
    with pytest.raises(UserError, match="without a row"):
        plan_chunks(tmp_path / "empty")
    (tmp_path / "foreign").mkdir()
    pq.write_table(pa.table({"image_id": ["a"], "image": [b""]}), tmp_path / "foreign" / "part-0.parquet")
    with pytest.raises(UserError, match=r"part-0\.parquet has no column 'orientation'"):
        plan_chunks(tmp_path / "foreign")


def test_a_damaged_shard_is_named(tmp_path):
    path = tmp_path / "part-0.parquet"
    write(path, [row(np.random.default_rng(k).bytes(1000), str(k)) for k in range(20)], use_dictionary=False)
    (chunk,) = plan_chunks(tmp_path)
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"part-0\.parquet is damaged"):
        read_chunk(chunk, ["image_id", "image"])


def test_text_that_is_none_is_damage(tmp_path):
    path = tmp_path / "part-0.parquet"
    write(path, [row(PNG, "name3")], compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"name3", b"n\xffme3"))
    (chunk,) = plan_chunks(tmp_path)
    with pytest.raises(UserError, match=r"part-0\.parquet is damaged"):
        PrepareImages(frame=InputFrame(SAM_PX))(chunk)
    write(path, [row(PNG)])
    path.write_bytes(path.read_bytes().replace(b"orientation", b"orient\xfftion"))
    with pytest.raises(UserError, match=r"part-0\.parquet is not a readable Parquet file"):
        plan_chunks(tmp_path)


@pytest.mark.parametrize("column", ["image_labels", "orientation"])
def test_columns_of_another_type_are_errors_of_their_rows(tmp_path, column):
    other = {"image_labels": 3, "orientation": [1]}[column]
    columns = {name: [value] for name, value in (row(PNG) | {column: other}).items()}
    pq.write_table(pa.table(columns), tmp_path / "part-0.parquet")
    (chunk,) = plan_chunks(tmp_path)
    (image,) = PrepareImages(frame=InputFrame(SAM_PX))(chunk)
    assert image.error is not None
    assert "expected" in image.error


@pytest.mark.parametrize("label", [True, 2**40])
def test_labels_that_are_no_indices(tmp_path, label):
    columns = {name: [value] for name, value in (row(PNG) | {"image_labels": [label]}).items()}
    pq.write_table(pa.table(columns), tmp_path / "part-0.parquet")
    (chunk,) = plan_chunks(tmp_path)
    (image,) = PrepareImages(frame=InputFrame(SAM_PX))(chunk)
    assert image.error is not None
    pack_images([image])


def test_a_shard_that_shrank_is_noticed(tmp_path):
    path = tmp_path / "part-0.parquet"
    write(path, [row(PNG, str(k)) for k in range(10)])
    (chunk,) = plan_chunks(tmp_path)
    write(path, [row(PNG, str(k)) for k in range(7)])
    with pytest.raises(UserError, match="lost rows"):
        read_chunk(chunk, ["image_id"])


def test_a_chunk_is_read_without_its_neighbours(tmp_path):
    path = tmp_path / "part-0.parquet"
    rows = [row(np.random.default_rng(k).bytes(1000), str(k)) for k in range(30)]
    write(path, rows, use_dictionary=False, row_group_size=10)
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    first, second, third = plan_chunks(tmp_path, 10)
    for chunk in (first, third):
        table = read_chunk(chunk, ["image_id", "image"])
        assert table.to_pylist() == [
            {name: entry[name] for name in ("image_id", "image")}
            for entry in rows[chunk.first_row : chunk.first_row + 10]
        ]
    with pytest.raises(UserError, match=r"part-0\.parquet is damaged"):
        read_chunk(second, ["image_id", "image"])


def reopened(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


DEEP = (np.arange(4800).reshape(60, 80) * 13).astype(np.uint16)
CMYK, GREY, PALETTE = encoded(SCENE, "JPEG", "CMYK"), encoded(SCENE, "JPEG", "L"), encoded(SCENE, "PNG", "P")
HALF_CLEAR = encoded(np.dstack([SCENE, np.full((60, 80), 127, np.uint8)]))
KINDS = {
    "CMYK": (CMYK, reopened(CMYK), 0),
    "grey": (GREY, reopened(GREY), 0),
    "palette": (PALETTE, reopened(PALETTE), 0),
    "RGBA": (HALF_CLEAR, 255 - (255.0 - SCENE) * 127 / 255, 1),  # over white
    "16 bits": (encoded(DEEP), np.dstack([DEEP // 256] * 3), 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_pixels_of_every_kind_of_image(tmp_path, name):
    data, expected, atol = KINDS[name]
    (image,) = prepared(tmp_path, [row(data)], PrepareImages(max_side_px=100, frame=InputFrame(SAM_PX)))
    assert image.pixels is not None
    assert image.pixels.dtype == np.uint8
    np.testing.assert_allclose(image.pixels.astype(float), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("long_side", "fits"), [(2 * SAM_PX, True), (2 * SAM_PX + 1, False)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_thinnest_image_that_sam_can_look_at(tmp_path, long_side, fits, turned):
    pixels = np.zeros((1, long_side, 3), np.uint8)
    data = encoded(pixels.swapaxes(0, 1) if turned else pixels)
    (image,) = prepared(tmp_path, [row(data)], PrepareImages(frame=InputFrame(SAM_PX)))
    assert (image.error is None) == fits
    if fits:
        assert image.sam_pixels is not None
        assert image.sam_pixels.shape == ((SAM_PX, 1, 3) if turned else (1, SAM_PX, 3))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM"]),
    damage=st.lists(st.tuples(st.integers(0, 150), st.binary(max_size=4)), min_size=1, max_size=4),
    kept=st.floats(0.1, 1),
)
def test_damage_never_stops_a_chunk(tmp_path_factory, kind, damage, kept):
    data = bytearray(encoded(SCENE, kind))
    for at, others in damage:
        data[at : at + len(others)] = others
    folder = tmp_path_factory.mktemp("damaged")
    rows = [row(bytes(data[: int(len(data) * kept)])), row(PNG, "after")]
    damaged, after = prepared(folder, rows, PrepareImages(max_side_px=64, frame=InputFrame(SAM_PX)))
    assert (damaged.error is None) == (damaged.pixels is not None) == (damaged.sam_pixels is not None)
    assert after.error is None


@pytest.mark.parametrize("missing", ["image_id", "image", "orientation", "image_labels"])
def test_a_missing_column_is_named(tmp_path, missing):
    table = pa.Table.from_pylist([row(PNG)], schema=NULLABLE)
    pq.write_table(table, tmp_path / "part-0.parquet")
    pq.write_table(table.drop_columns([missing]), tmp_path / "part-1.parquet")
    with pytest.raises(UserError, match=rf"part-1\.parquet has no column '{missing}'"):
        plan_chunks(tmp_path)


def test_a_plan_holds_in_another_working_directory(tmp_path, monkeypatch):
    write(tmp_path / "set" / "shards" / "part-0.parquet", [row(PNG)])
    monkeypatch.chdir(tmp_path)
    (chunk,) = plan_chunks(Path("set"))
    monkeypatch.chdir("/")
    assert read_chunk(chunk, ["image"]).to_pylist() == [{"image": PNG}]


def test_a_shard_that_is_cut_off_or_gone(tmp_path):
    path = tmp_path / "part-0.parquet"
    write(path, [row(PNG)])
    (chunk,) = plan_chunks(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    for use in (lambda: plan_chunks(tmp_path), lambda: read_chunk(chunk, ["image"])):
        with pytest.raises(UserError, match=r"part-0\.parquet is not a readable Parquet file"):
            use()
    path.unlink()
    with pytest.raises(UserError, match=r"part-0\.parquet is not a readable Parquet file"):
        read_chunk(chunk, ["image"])


@pytest.mark.parametrize("orientation", [None, 0, 1])
def test_without_an_orientation_pixels_are_as_stored(tmp_path, orientation):
    (image,) = prepared(
        tmp_path,
        [row(PNG, orientation=orientation)],
        PrepareImages(max_side_px=100, frame=InputFrame(SAM_PX)),
    )
    np.testing.assert_array_equal(image.pixels, SCENE)
