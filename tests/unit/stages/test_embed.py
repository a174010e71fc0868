"""Embedding and labelling from the cache: the same as live, up to the rounding of what is stored."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ray_wsss.config import EmbedConfig, LabelConfig, SamConfig
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.embeddings import EMBEDDING_SCHEMA, EmbeddingDtype
from ray_wsss.data.scenes import make_scene
from ray_wsss.data.schema import IMAGE_SCHEMA, write_table_atomically
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages, pack_images, unpack_images
from ray_wsss.runs.read_chunks import Chunk, plan_chunks
from ray_wsss.stages.embed import SamEmbedder, embeddings_of
from ray_wsss.stages.label import SamLabeller

SAM = SamConfig(name="tiny", precision="fp32", encode_batch_size=4)
CONFIG = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0,), max_side_px=100)
DTYPES: tuple[EmbeddingDtype, ...] = ("fp16", "int8")


SIZES_HW = [(64, 64), (64, 96), (90, 70), (120, 160)]
IMAGES = [make_scene(700 + n, *SIZES_HW[n % 4]).image for n in range(32)]


def row(n: int, pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    height, width = pixels.shape[:2]
    labels = [n % 6, (n + 2) % 6]
    identity = {"image_id": f"scene {n}", "image": buffer.getvalue(), "orientation": 1}
    return {**identity, "height": height, "width": width, "image_labels": labels, "mask": None}


def write_dataset(folder: Path, rows: list[dict]) -> list[Chunk]:
    write_table_atomically(pa.Table.from_pylist(rows, IMAGE_SCHEMA), folder / "shards" / "part-00000.parquet")
    return plan_chunks(folder, 20)


@pytest.fixture(scope="module")
def chunks(tmp_path_factory) -> list[Chunk]:
    rows = [row(n, image) for n, image in enumerate(IMAGES)]
    return write_dataset(tmp_path_factory.mktemp("dataset"), rows)


@pytest.fixture(scope="module")
def caches(chunks, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for dtype in DTYPES:
        folder = folders[dtype] = tmp_path_factory.mktemp(dtype)
        embed = SamEmbedder(EmbedConfig(dtype=dtype), SAM)
        for chunk in chunks:
            table, tally = embed(PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))(chunk))
            assert table.schema.equals(EMBEDDING_SCHEMA)
            assert (tally.images, tally.errors) == (chunk.rows, 0)
            Parts(folder, "").write(chunk, table, tally, embed.rows_per_group)
        (folder / "manifest.json").write_text("{}")
    return folders


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 1e-3), ("int8", 1 / 254)])
def test_the_cache_holds_sams_embeddings(chunks, caches, tiny_sam, dtype, most):
    (expected,) = SamEncoder(tiny_sam)(IMAGES).maps
    prepare = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX), embeddings=caches[dtype])
    prepared = [image for chunk in chunks for image in prepare(chunk)]
    assert all(image.sam_pixels is None for image in prepared)
    (found,) = embeddings_of(SamEncoder(tiny_sam, batch_size=4), prepared).maps
    per_channel = expected.abs().amax((2, 3), keepdim=True)
    assert ((found - expected).abs() <= most * per_channel + 1e-5).all()
    assert not torch.equal(found, expected)


def test_live_embeddings_are_the_encoders(chunks, tiny_sam):
    prepared = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))(chunks[1])
    (expected,) = SamEncoder(tiny_sam)(IMAGES[20:]).maps
    (found,) = embeddings_of(SamEncoder(tiny_sam, batch_size=4), prepared).maps
    assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_images_that_travelled_are_embedded_alike(chunks):
    images = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))(chunks[1])
    embed = SamEmbedder(EmbedConfig(), SAM)
    assert embed(unpack_images(pack_images(images)))[0].equals(embed(images)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cached_embeddings_travel(chunks, caches, tiny_sam, dtype):
    images = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX), embeddings=caches[dtype])(chunks[1])
    received = unpack_images(pack_images(images))
    encoder = SamEncoder(tiny_sam)
    assert torch.equal(*(embeddings_of(encoder, some).maps[0] for some in (received, images)))


def test_images_that_the_cache_does_not_know_are_errors(caches, tmp_path):
    rows = [row(0, IMAGES[0]), row(99, IMAGES[0]), row(1, IMAGES[0]), row(2, IMAGES[2])]
    (chunk,) = write_dataset(tmp_path, rows)
    prepare = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX), embeddings=caches["fp16"])
    known, unknown, resized, another = prepare(chunk)
    assert known.error is another.error is None
    assert "no embedding of this image" in str(unknown.error)
    assert "an image of 96x64 pixels, this one has 64x64" in str(resized.error)
    assert unknown.embedding is resized.embedding is None


def test_bytes_take_half_the_space(caches):
    half, small = (
        sum(path.stat().st_size for path in (caches[dtype] / "shards").iterdir()) for dtype in DTYPES
    )
    assert small < 0.55 * half


def test_a_broken_image_keeps_its_reason(chunks):
    good = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))(chunks[0])[0]
    table, tally = SamEmbedder(EmbedConfig(), SAM)([PreparedImage(image_id="bad", error="cut"), good])
    bad, fine = table.to_pylist()
    assert (bad["error"], bad["embedding"], fine["error"]) == ("cut", None, None)
    assert (tally.images, tally.errors) == (1, 1)
    table, tally = SamEmbedder(EmbedConfig(), SAM)([PreparedImage(image_id="bad", error="cut")])
    assert (tally.images, tally.errors) == (0, 1)


def masks_of(row: dict) -> list[np.ndarray]:
    size = (row["height"], row["width"])
    return [decode_rle(segment["rle"], size) for segment in row["segments"]]


@pytest.fixture(scope="module")
def labeller(classifier_dir) -> SamLabeller:
    return SamLabeller(CONFIG, SAM, classifier_dir)


def label(labeller: SamLabeller, chunks: list[Chunk], embeddings: Path | None = None) -> list[dict]:
    prepare = PrepareImages(max_side_px=100, frame=InputFrame(IMAGE_SIZE_PX), embeddings=embeddings)
    return [row for chunk in chunks for row in labeller(prepare(chunk))[0].to_pylist()]


# Measured: fp16 1.0; int8 0.998 on average, and 0.924 at least, for the mask of one ambiguous prompt of this
# untrained classifier (the next is 0.992). With another BLAS perhaps less.
@pytest.mark.parametrize(("dtype", "mean", "least"), [("fp16", 0.9999, 0.995), ("int8", 0.995, 0.85)])
def test_labels_from_the_cache_are_the_live_ones(chunks, caches, labeller, dtype, mean, least):
    live_rows, cached_rows = label(labeller, chunks), label(labeller, chunks, caches[dtype])
    assert [row["image_id"] for row in cached_rows] == [f"scene {n}" for n in range(len(IMAGES))]
    ious = []
    for live, cached in zip(live_rows, cached_rows, strict=True):
        assert live["error"] is cached["error"] is None
        for one, other in zip(masks_of(live), masks_of(cached), strict=True):
            assert one.any()
            ious.append((one & other).sum() / (one | other).sum())
        points = [[segment["points_xy"] for segment in row["segments"]] for row in (live, cached)]
        assert points[0] == points[1]
    assert len(ious) == 2 * len(IMAGES)
    assert np.mean(ious) >= mean
    assert min(ious) >= least


@pytest.mark.parametrize(
    ("factor", "dtype", "reason"),
    [
        (torch.nan, "fp16", "not finite"),
        (torch.nan, "int8", "not finite"),
        (1e6, "fp16", "beyond half precision"),
        (1e6, "int8", None),
    ],
)
def test_embeddings_that_can_not_be_stored_are_errors(chunks, factor, dtype, reason):
    embed = SamEmbedder(EmbedConfig(dtype=dtype), SAM)
    sam = embed.encoder.sam
    assert isinstance(sam, SegmentAnything)
    for weights in sam.image_encoder.neck[-1].parameters():
        weights.mul_(factor)
    table, tally = embed(PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))(chunks[1])[:2])
    assert (tally.images, tally.errors) == ((2, 0) if reason is None else (0, 2))
    for entry in table.to_pylist():
        assert (entry["embedding"] is None) == (entry["height"] is None) == (entry["error"] is not None)
        assert entry["error"] is None if reason is None else reason in entry["error"]


def test_a_row_group_holds_what_is_read_at_random_at_a_time():
    assert SamEmbedder(EmbedConfig(), SAM).rows_per_group == 2 * 2**20 // (64 * 16 * 16 * 2)
