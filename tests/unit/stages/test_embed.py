"""Embedding and labelling from the cache: the same as live, up to the rounding of what is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ray_wsss.config import EmbedConfig, LabelConfig, SamConfig
from ray_wsss.data.coco import rasterise
from ray_wsss.data.embeddings import EMBEDDING_SCHEMA, EmbeddingDtype
from ray_wsss.data.images import decode_image
from ray_wsss.data.reader import ShardReader
from ray_wsss.models.sam.encoder import encode_images
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.stages.chunks import Chunk, PreparedImage, PrepareImages, plan_chunks
from ray_wsss.stages.embed import SamEmbedder, embeddings_of
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.parts import Parts

SAM = SamConfig(name="tiny", encode_batch_size=4)
CONFIG = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0,), max_side_px=100)
DTYPES: tuple[EmbeddingDtype, ...] = ("fp16", "int8")


@pytest.fixture(scope="module")
def chunks(scene_dataset) -> list[Chunk]:
    return plan_chunks(scene_dataset)


@pytest.fixture(scope="module")
def caches(chunks, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for dtype in DTYPES:
        folder = folders[dtype] = tmp_path_factory.mktemp(dtype)
        embed = SamEmbedder(EmbedConfig(dtype=dtype), SAM)
        for chunk in chunks:
            table, tally = embed(PrepareImages(sam_side_px=IMAGE_SIZE_PX)(chunk))
            assert table.schema.equals(EMBEDDING_SCHEMA)
            assert (tally.images, tally.errors) == (chunk.rows, 0)
            Parts(folder, "").write(chunk, table, tally, embed.rows_per_group)
        (folder / "manifest.json").write_text("{}")
    return folders


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 1e-3), ("int8", 1 / 254)])
def test_the_cache_holds_sams_embeddings(scene_dataset, chunks, caches, tiny_sam, dtype, most):
    reader = ShardReader(scene_dataset)
    images = [decode_image(reader.read(row)["image"]) for row in range(len(reader))]
    expected = encode_images(tiny_sam, images)
    prepare = PrepareImages(sam_side_px=IMAGE_SIZE_PX, embeddings=caches[dtype])
    prepared = [image for chunk in chunks for image in prepare(chunk)]
    assert all(image.sam_pixels is None for image in prepared)
    found = embeddings_of(tiny_sam, prepared, 4)
    per_channel = expected.abs().amax((2, 3), keepdim=True)
    assert ((found - expected).abs() <= most * per_channel + 1e-5).all()
    assert not torch.equal(found, expected)


def test_live_embeddings_are_the_encoders(chunks, tiny_sam, scene_dataset):
    prepared = PrepareImages(sam_side_px=IMAGE_SIZE_PX)(chunks[0])
    images = [decode_image(ShardReader(scene_dataset).read(row)["image"]) for row in range(len(prepared))]
    assert_close(embeddings_of(tiny_sam, prepared, 3), encode_images(tiny_sam, images), atol=1e-5, rtol=1e-4)


def test_bytes_take_half_the_space(caches):
    half, small = (
        sum(path.stat().st_size for path in (caches[dtype] / "shards").iterdir()) for dtype in DTYPES
    )
    assert small < 0.55 * half


def test_a_broken_image_keeps_its_reason(chunks):
    good = PrepareImages(sam_side_px=IMAGE_SIZE_PX)(chunks[0])[0]
    table, tally = SamEmbedder(EmbedConfig(), SAM)([PreparedImage(image_id="bad", error="cut"), good])
    bad, fine = table.to_pylist()
    assert (bad["error"], bad["embedding"], fine["error"]) == ("cut", None, None)
    assert (tally.images, tally.errors) == (1, 1)
    table, tally = SamEmbedder(EmbedConfig(), SAM)([PreparedImage(image_id="bad", error="cut")])
    assert (tally.images, tally.errors) == (0, 1)


def masks_of(row: dict) -> list[np.ndarray]:
    size = [row["height"], row["width"]]
    segments = [{"segmentation": {"size": size, "counts": s["rle"]}} for s in row["segments"]]
    return [rasterise([s | {"class_index": 0}], *size) > 0 for s in segments]


@pytest.mark.parametrize(("dtype", "least"), [("fp16", 0.995), ("int8", 0.95)])
def test_labels_from_the_cache_are_the_live_ones(chunks, caches, classifier_dir, dtype, least):
    labeller = SamLabeller(CONFIG, SAM, classifier_dir)
    rows = []
    for embeddings in (None, caches[dtype]):
        prepare = PrepareImages(max_side_px=100, sam_side_px=IMAGE_SIZE_PX, embeddings=embeddings)
        rows.append([row for chunk in chunks for row in labeller(prepare(chunk))[0].to_pylist()])
    ious = []
    for live, cached in zip(*rows, strict=True):
        assert live["error"] is cached["error"] is None
        for one, other in zip(masks_of(live), masks_of(cached), strict=True):
            ious.append((one & other).sum() / max((one | other).sum(), 1) if (one | other).any() else 1.0)
        points = [[segment["points_xy"] for segment in row["segments"]] for row in (live, cached)]
        assert points[0] == points[1]
    assert len(ious) > 14
    assert min(ious) >= least
