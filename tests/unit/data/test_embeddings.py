"""Stored embeddings: rounded as promised, found by image id, refused where they don't belong."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ray_wsss.data.embeddings import (
    EMBEDDING_SCHEMA,
    EmbeddingCache,
    EmbeddingDtype,
    StoredEmbedding,
    open_embeddings,
    store_embeddings,
)
from ray_wsss.data.schema import write_table_atomically
from ray_wsss.errors import UserError


@pytest.fixture
def embedding() -> np.ndarray:
    spread = np.array([0.01, 1.0, 30.0])[:, None, None]
    return (np.random.default_rng(0).normal(size=(3, 4, 5)) * spread).astype(np.float32)


def store_embedding(embedding: np.ndarray, dtype: EmbeddingDtype) -> StoredEmbedding:
    """One alone."""
    (stored,) = store_embeddings([torch.tensor(embedding.copy())[None]], dtype)
    if isinstance(stored, ValueError):
        raise stored
    return stored


def entry(
    image_id: str, embedding: np.ndarray | None, dtype: EmbeddingDtype = "fp16", error: str | None = None
) -> dict:
    if embedding is None:
        return {"image_id": image_id, "error": error}
    stored = store_embedding(embedding, dtype)
    return {
        "image_id": image_id,
        "height": 60,
        "width": 80,
        "shape": embedding.shape,
        "embedding": stored.values.tobytes(),
        "scale": stored.scale.tolist() if stored.scale is not None else None,
    }


def write_cache(folder, entries, schema: pa.Schema = EMBEDDING_SCHEMA) -> None:
    table = pa.Table.from_pylist(entries, schema=schema)
    write_table_atomically(table, folder / "shards" / "part-000000.parquet")
    (folder / "manifest.json").write_text("{}")


def test_no_null_is_in_a_list_of_fixed_size():
    """No version of pyarrow before 26 can read one."""
    nullable = [field for field in EMBEDDING_SCHEMA if field.nullable]
    assert nullable
    assert not [field.name for field in nullable if pa.types.is_fixed_size_list(field.type)]


def test_shapes_of_fixed_size_are_read(tmp_path, embedding):
    """As version 0.1 wrote them."""
    fixed = pa.field("shape", pa.list_(pa.int32(), 3))
    schema = EMBEDDING_SCHEMA.set(EMBEDDING_SCHEMA.get_field_index("shape"), fixed)
    write_cache(tmp_path, [entry("good", embedding)], schema)
    assert pq.read_schema(tmp_path / "shards" / "part-000000.parquet").equals(schema)
    found = EmbeddingCache(tmp_path).read("good", (60, 80))
    np.testing.assert_array_equal(found.values, embedding.astype(np.float16).ravel())


def test_half_precision_is_numpys(embedding):
    stored = store_embedding(embedding, "fp16")
    assert stored.scale is None
    np.testing.assert_array_equal(stored.values, embedding.astype(np.float16).ravel())


def test_bytes_are_within_half_a_step_of_their_channel(embedding):
    embedding[1] = 0
    stored = store_embedding(embedding, "int8")
    assert stored.values.dtype == np.int8
    assert stored.scale is not None
    values = stored.values.reshape(embedding.shape)
    assert (np.abs(values).max(axis=(1, 2)) == [127, 0, 127]).all()
    restored = values * stored.scale[:, None, None]
    half_step = np.abs(embedding).max(axis=(1, 2)) / 127 / 2
    assert (np.abs(restored - embedding).max(axis=(1, 2)) <= half_step * 1.0001).all()


@given(arrays(np.float32, (3, 2, 2), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bytes_keep_any_channel_to_half_a_step(embedding):
    stored = store_embedding(embedding, "int8")
    assert stored.scale is not None
    exact = embedding.astype(np.float64)
    restored = stored.values.reshape(embedding.shape) * stored.scale.astype(np.float64)[:, None, None]
    half_step = np.maximum(np.abs(exact).max(axis=(1, 2)), 1e-12) / 127 / 2
    assert (np.abs(restored - exact).max(axis=(1, 2)) <= half_step * 1.0001).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_values_that_are_not_finite_are_refused(embedding, value, dtype):
    embedding[2, 1, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        store_embedding(embedding, dtype)


def test_values_beyond_half_precision_are_refused(embedding):
    embedding[0, 0, 0] = -70_000
    with pytest.raises(ValueError, match="beyond half precision"):
        store_embedding(embedding, "fp16")
    store_embedding(embedding, "int8")
    embedding[0, 0, 0] = -65_504
    assert np.isfinite(store_embedding(embedding, "fp16").values).all()


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_one_that_can_not_be_stored_does_not_stop_the_others(embedding, dtype):
    broken = np.where(embedding > 0, np.nan, embedding)
    first, second, third = store_embeddings([torch.tensor(np.stack([embedding, broken, -embedding]))], dtype)
    assert isinstance(second, ValueError)
    for stored, alone in ((first, embedding), (third, -embedding)):
        assert isinstance(stored, StoredEmbedding)
        np.testing.assert_array_equal(stored.values, store_embedding(alone, dtype).values)


def test_embeddings_come_back_by_image_id(tmp_path, embedding):
    write_cache(tmp_path, [entry("half", embedding), entry("bytes", embedding[::-1], "int8")])
    cache = EmbeddingCache(tmp_path)
    assert cache.image_ids == ["half", "bytes"]
    half, small = cache.read("half", (60, 80)), cache.read("bytes", (60, 80))
    np.testing.assert_array_equal(half.values, embedding.astype(np.float16).ravel())
    expected = store_embedding(embedding[::-1], "int8")
    np.testing.assert_array_equal(small.values, expected.values)
    np.testing.assert_array_equal(small.scale, expected.scale)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_several_maps_are_kept_one_after_the_other(tmp_path, embedding, dtype):
    fine = 7 * np.repeat(embedding[:2], 2, axis=1)
    (stored,) = store_embeddings([torch.tensor(maps)[None] for maps in (embedding, fine)], dtype)
    assert isinstance(stored, StoredEmbedding)
    alone = [store_embedding(maps, dtype) for maps in (embedding, fine)]
    columns = entry("both", embedding, dtype) | {
        "shape": [number for shape in stored.shapes for number in shape],
        "embedding": stored.values.tobytes(),
        "scale": stored.scale.tolist() if stored.scale is not None else None,
    }
    write_cache(tmp_path, [columns])
    found = EmbeddingCache(tmp_path).read("both", (60, 80))
    assert found.shapes == (embedding.shape, fine.shape)
    np.testing.assert_array_equal(found.values, np.concatenate([each.values for each in alone]))
    if dtype == "int8":
        np.testing.assert_array_equal(found.scale, np.concatenate([each.scale for each in alone]))  # type: ignore[arg-type]


def test_values_that_do_not_fill_the_maps_are_refused(tmp_path, embedding):
    write_cache(tmp_path, [entry("cut", embedding) | {"shape": (3, 4, 6)}])
    with pytest.raises(ValueError, match="60 values of its embedding; expected 72"):
        EmbeddingCache(tmp_path).read("cut", (60, 80))


def test_what_the_cache_can_not_give(tmp_path, embedding):
    write_cache(tmp_path, [entry("good", embedding), entry("bad", None, error="truncated JPEG")])
    cache = EmbeddingCache(tmp_path)
    with pytest.raises(ValueError, match="no embedding of this image"):
        cache.read("unknown", (60, 80))
    with pytest.raises(ValueError, match="no embedding of this image: truncated JPEG"):
        cache.read("bad", (60, 80))
    with pytest.raises(ValueError, match="80x60 pixels, this one has 60x80"):
        cache.read("good", (80, 60))
    cache.require(["good", "bad"], tmp_path)
    with pytest.raises(UserError, match=r"lacks 2 of the 3 images of .*, the first is other"):
        cache.require(["good", "other", "third"], tmp_path)


def test_a_cache_that_was_made_again_is_read_again(tmp_path, embedding):
    write_cache(tmp_path, [entry("old", embedding)])
    assert open_embeddings(tmp_path) is open_embeddings(tmp_path)
    assert open_embeddings(tmp_path).image_ids == ["old"]
    write_cache(tmp_path, [entry("new", embedding)])
    os.utime(tmp_path / "manifest.json", ns=(1, 1))  # clocks may be too coarse to tell
    assert open_embeddings(tmp_path).image_ids == ["new"]


def test_a_damaged_cache_is_named(tmp_path, embedding):
    write_cache(tmp_path, [entry("good", np.tile(embedding, (1, 40, 40)))])
    cache = EmbeddingCache(tmp_path)
    assert cache.image_ids == ["good"]
    path = tmp_path / "shards" / "part-000000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(EMBEDDING_SCHEMA.names.index("embedding"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"part-000000\.parquet is damaged"):
        EmbeddingCache(tmp_path).read("good", (60, 80))
