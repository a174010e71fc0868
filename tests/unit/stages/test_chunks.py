"""Chunks: planned the same every time, read without their neighbours, decoded whatever is in them."""

import io
import struct
import tracemalloc
import zlib
from dataclasses import fields
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
from ray_wsss.stages.chunks import (
    PreparedImage,
    PrepareImages,
    pack_images,
    plan_chunks,
    read_chunk,
    resize_map,
    shrink,
    unpack_images,
    working_hw,
)

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
    prepare = PrepareImages(max_side_px=64, sam_side_px=SAM_PX)
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
    (image,) = prepared(tmp_path, [row(data)], PrepareImages(max_side_px=100, sam_side_px=SAM_PX))
    assert image.error is None
    np.testing.assert_array_equal(image.pixels, decode_image(data))


def test_rows_without_labels_or_orientation_are_fine(tmp_path):
    rows = [row(PNG, image_labels=None, orientation=None), row(PNG, orientation=0), row(PNG, orientation=6)]
    plain, zero, turned = prepared(tmp_path, rows, PrepareImages(max_side_px=100, sam_side_px=SAM_PX))
    assert (plain.error, plain.image_labels, plain.image_hw) == (None, (), (60, 80))
    assert zero.image_hw == (60, 80)
    np.testing.assert_array_equal(turned.pixels, np.rot90(SCENE, -1))


def test_sizes_are_those_of_the_working_copy_and_of_sams_own_resize(tmp_path):
    (image,) = prepared(tmp_path, [row(PNG)], PrepareImages(max_side_px=40, sam_side_px=SAM_PX))
    assert image.image_hw == (60, 80)
    assert image.pixels is not None
    assert image.pixels.shape == (30, 40, 3)
    np.testing.assert_array_equal(image.sam_pixels, ResizeLongestSide(SAM_PX).apply_image(SCENE))
    (image,) = prepared(tmp_path / "sam only", [row(PNG)], PrepareImages(sam_side_px=SAM_PX))
    assert image.pixels is None
    assert image.sam_pixels is not None


def test_working_size():
    assert working_hw((60, 80), 80) == (60, 80)
    assert working_hw((60, 80), 1000) == (60, 80)
    assert working_hw((60, 80), 40) == (30, 40)
    assert working_hw((1, 1000), 32) == (1, 32)
    assert shrink(SCENE, 80) is SCENE
    assert shrink(SCENE, 40).shape == (30, 40, 3)


def test_the_working_copy_is_as_pillow_would_shrink_it():
    expected = np.array(Image.fromarray(SCENE).resize((33, 25), Image.Resampling.BILINEAR))
    assert np.abs(shrink(SCENE, 33).astype(int) - expected).max() <= 1


def test_maps_are_scaled_without_new_values():
    segments = np.array([[0, 65_535], [7, 0]], np.int32)
    scaled = resize_map(segments, (4, 6))
    assert scaled.dtype == np.int32
    np.testing.assert_array_equal(scaled, segments.repeat(2, axis=0).repeat(3, axis=1))
    assert resize_map(segments, (2, 2)) is segments


@pytest.mark.parametrize("image_hw", [(13, 31), (11, 40), (100, 7)])
def test_maps_take_the_value_at_each_pixels_centre(image_hw):
    segments = np.arange(7 * 11, dtype=np.int32).reshape(7, 11) * 800
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(image_hw, segments.shape))
    expected = segments[rows.astype(int)[:, None], columns.astype(int)]
    np.testing.assert_array_equal(resize_map(segments, image_hw), expected)
    mask = segments % 3 == 0
    assert resize_map(mask, image_hw).dtype == bool
    np.testing.assert_array_equal(resize_map(mask, image_hw), expected % 3 == 0)


@settings(max_examples=25, deadline=None)
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


def test_packed_images_come_back():
    rng = np.random.default_rng(0)
    images = [
        PreparedImage(
            image_id="full",
            image_hw=(60, 80),
            image_labels=(0, 5),
            pixels=SCENE[::2, ::2],  # not contiguous
            sam_pixels=SCENE,
        ),
        PreparedImage(image_id="cached", embedding=rng.random((4, 3, 2)).astype(np.float16)),
        PreparedImage(
            image_id="bytes",
            embedding=rng.integers(-127, 128, (4, 3, 2)).astype(np.int8),
            embedding_scale=rng.random(4).astype(np.float32),
        ),
        PreparedImage(image_id="broken", error="truncated JPEG"),
    ]
    found = unpack_images(pack_images(images))
    assert len(found) == len(images)
    for before, after in zip(images, found):
        for field in fields(PreparedImage):
            one, other = getattr(before, field.name), getattr(after, field.name)
            if isinstance(one, np.ndarray):
                assert other.dtype == one.dtype
                np.testing.assert_array_equal(other, one)
            else:
                assert other == one
    assert unpack_images(pack_images([])) == []


def test_packed_images_are_one_row_of_a_table():
    """Ray Data cuts tables into slices, puts them together again and sends them through files."""
    counts = (2, 0, 3)
    names = [[f"{row}-{k}" for k in range(count)] for row, count in enumerate(counts)]
    packed = [
        pack_images([PreparedImage(image_id=n, pixels=np.full((2, 3, 3), row, np.uint8)) for n in ids])
        for row, ids in enumerate(names)
    ]
    table = pa.table({"images": pa.chunked_array(packed)}).combine_chunks()
    assert len(table) == len(counts)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.open_stream(sink.getvalue()) as source:
        received = source.read_all()
    for row_index, ids in enumerate(names):
        images = unpack_images(received.slice(row_index, 1)["images"].combine_chunks())
        assert [image.image_id for image in images] == ids
        assert all((image.pixels == row_index).all() for image in images)


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
    (image,) = prepared(tmp_path, [row(data)], PrepareImages(max_side_px=100, sam_side_px=SAM_PX))
    assert image.pixels is not None
    assert image.pixels.dtype == np.uint8
    np.testing.assert_allclose(image.pixels.astype(float), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("long_side", "fits"), [(2 * SAM_PX, True), (2 * SAM_PX + 1, False)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_thinnest_image_that_sam_can_look_at(tmp_path, long_side, fits, turned):
    pixels = np.zeros((1, long_side, 3), np.uint8)
    data = encoded(pixels.swapaxes(0, 1) if turned else pixels)
    (image,) = prepared(tmp_path, [row(data)], PrepareImages(sam_side_px=SAM_PX))
    assert (image.error is None) == fits
    if fits:
        assert image.sam_pixels is not None
        assert image.sam_pixels.shape == ((SAM_PX, 1, 3) if turned else (1, SAM_PX, 3))


@settings(max_examples=60, deadline=None)
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
    damaged, after = prepared(folder, rows, PrepareImages(max_side_px=64, sam_side_px=SAM_PX))
    assert (damaged.error is None) == (damaged.pixels is not None) == (damaged.sam_pixels is not None)
    assert after.error is None


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 1500))
def test_the_working_size_keeps_the_shape(height, width, most):
    small = working_hw((height, width), most)
    assert max(small) == min(most, max(height, width))
    scale = max(small) / max(height, width)
    assert all(abs(a - max(1, b * scale)) <= 0.501 for a, b in zip(small, (height, width)))


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


def test_unpacked_arrays_are_views():
    embedding = np.arange(24, dtype=np.float16).reshape(2, 3, 4).T  # not contiguous
    large = PreparedImage(image_id="large", pixels=np.zeros((1000, 1000, 3), np.uint8), embedding=embedding)
    packed = pack_images([large] * 4)
    allocated = pa.total_allocated_bytes()
    tracemalloc.start()
    found = unpack_images(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert pa.total_allocated_bytes() - allocated < 200_000
    for image in found:
        assert image.pixels is not None
        assert image.embedding is not None
        np.testing.assert_array_equal(image.embedding, embedding)
        assert not image.pixels.flags.owndata
        assert not image.embedding.flags.owndata
