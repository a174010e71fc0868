"""Images that travel between processes: one row, nothing lost, nothing copied on arrival."""

import io
import tracemalloc
from dataclasses import fields

import numpy as np
import pyarrow as pa

from ray_wsss.data.objects import AnnotatedObject
from ray_wsss.data.scenes import make_scene
from ray_wsss.runs.prepared_images import PreparedImage, pack_images, unpack_images

SCENE = make_scene(3, 60, 80).image


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
        PreparedImage(image_id="large", image_hw=(600, 800), encoded=b"\xff\xd8\0", orientation=6),
        PreparedImage(image_id="broken", error="truncated JPEG"),
        PreparedImage(
            image_id="objects",
            objects=(
                AnnotatedObject(class_index=1, box_xyxy=(1.0, 2.0, 3.5, 4.0), iscrowd=True),
                AnnotatedObject(class_index=0, points_xy=((5.0, 6.25), (7.0, 8.0)), point_labels=(1, 0)),
            ),
        ),
        PreparedImage(image_id="no objects", objects=()),
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


def lies_in(array: np.ndarray, packed: pa.Array) -> bool:
    start = array.__array_interface__["data"][0]
    buffers = [buffer for buffer in packed.buffers() if buffer is not None]
    return any(b.address <= start and start + array.nbytes <= b.address + b.size for b in buffers)


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
        assert lies_in(image.pixels, packed)
        assert lies_in(image.embedding, packed)


def test_a_slice_of_packed_images_is_unpacked_alone():
    one, two = (pack_images([PreparedImage(image_id=name)]) for name in "ab")
    assert [image.image_id for image in unpack_images(pa.concat_arrays([one, two]).slice(1, 1))] == ["b"]
