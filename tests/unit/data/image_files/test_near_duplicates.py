"""Near-duplicates across two data sets."""

import io
import logging
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFilter

from ray_wsss.data.image_files.near_duplicates import (
    MAX_DISTANCE,
    find_near_duplicates,
    nearest_within,
    perceptual_hash,
)
from ray_wsss.data.schema import IMAGE_SCHEMA, write_table_atomically
from ray_wsss.runs.dependencies import warn_of_near_duplicates


def photograph(seed: int) -> Image.Image:
    """Soft shapes of several sizes, as photographs have them."""
    noise = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


def saved(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def distance(a: Image.Image, b: Image.Image) -> int:
    hashes = [perceptual_hash(np.asarray(image)) for image in (a, b)]
    assert None not in hashes
    return (((hashes[0] or 0) ^ (hashes[1] or 0)) & (2**64 - 1)).bit_count()


def dataset(folder: Path, images: dict[str, Image.Image]) -> Path:
    rows = []
    for image_id, image in images.items():
        pixels = np.asarray(image)
        row = {"image_id": image_id, "image": b"", "orientation": 1, "image_labels": [0]}
        size = {"height": image.height, "width": image.width}
        rows.append(row | size | {"perceptual_hash": perceptual_hash(pixels)})
    table = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    write_table_atomically(table, folder / "shards" / "part-00000.parquet")
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_resized_and_recompressed_images_are_near_and_others_far(seed):
    image = photograph(seed)
    for copy in (saved(image, 40), image.resize((160, 120)), image.filter(ImageFilter.GaussianBlur(1))):
        assert distance(image, copy) <= MAX_DISTANCE
    others = [photograph(other) for other in range(5, 30)]
    assert min(distance(image, other) for other in others) > 2 * MAX_DISTANCE


def test_an_even_image_has_no_hash():
    assert perceptual_hash(np.full((50, 60, 3), 77, np.uint8)) is None


def test_nearest_equals_a_search_of_all_pairs():
    rng = np.random.default_rng(0)
    others = rng.integers(-(2**63), 2**63, 5000)
    hashes = rng.integers(-(2**63), 2**63, 70)
    for k in range(60):  # flip up to 6 bits of some of the others
        flips = rng.choice(63, k % 7, replace=False)
        hashes[k] = others[k * 80] ^ np.bitwise_or.reduce(np.int64(1) << flips, initial=0)
    hashes[65] = others[5] = 0  # images without a hash
    found = nearest_within(hashes, others, 4)
    for k, ours in enumerate(hashes.tolist()):
        bits = [((ours ^ theirs) & (2**64 - 1)).bit_count() if theirs else 64 for theirs in others.tolist()]
        assert found[k] == (int(np.argmin(bits)) if ours and min(bits) <= 4 else -1)


@pytest.mark.slow
def test_100_000_by_10_000_images_take_seconds():
    rng = np.random.default_rng(0)
    others, hashes = (rng.integers(-(2**63), 2**63, count) for count in (100_000, 10_000))
    began = time.process_time()
    nearest_within(hashes, others, MAX_DISTANCE)
    assert time.process_time() - began < 60


def test_the_warning_counts_and_names_pairs(tmp_path, caplog):
    train = dataset(tmp_path / "train", {f"t{k}": photograph(k) for k in range(6)})
    copies = {f"v{k}": saved(photograph(k).resize((200, 150)), 70) for k in range(4)}
    validation = dataset(tmp_path / "val", copies | {"new": photograph(99)})
    found = find_near_duplicates(validation, train)
    assert (found.count, found.examples) == (4, (("v0", "t0"), ("v1", "t1"), ("v2", "t2")))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # said once, although both trainings of run-all check
            warn_of_near_duplicates(validation, train)
    (record,) = caplog.records
    assert "4 images of" in record.message
    assert "v0 and t0; v1 and t1; v2 and t2" in record.message


def test_data_sets_without_hashes_and_none_in_common_give_no_warning(tmp_path, caplog):
    new = dataset(tmp_path / "new", {f"a{k}": photograph(k) for k in range(3)})
    other = dataset(tmp_path / "other", {f"b{k}": photograph(50 + k) for k in range(3)})
    old = tmp_path / "old"
    rows = [{"image_id": "a", "image": b"", "orientation": 1, "height": 1, "width": 1}]
    schema = IMAGE_SCHEMA.remove(IMAGE_SCHEMA.get_field_index("perceptual_hash"))
    table = pa.Table.from_pylist(rows, schema=schema)
    write_table_atomically(table, old / "shards" / "part-00000.parquet")
    with caplog.at_level(logging.WARNING):
        for a, b in ((new, other), (new, old), (old, new), (new, new)):
            warn_of_near_duplicates(a, b)
        warn_of_near_duplicates(None, new)
    assert not caplog.records
