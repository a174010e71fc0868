"""Random access to shards."""

import copy
import pickle

import pyarrow as pa
import pytest

from ray_wsss.data import reader as reader_module
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import write_table_atomically
from ray_wsss.errors import UserError


@pytest.fixture
def dataset(tmp_path):
    for part, rows in enumerate([130, 1, 64]):
        names = [f"{part}-{row}" for row in range(rows)]
        table = pa.table({"image_id": names, "image": [name.encode() * 1000 for name in names]})
        write_table_atomically(table, tmp_path / f"shards/part-{part:05d}.parquet")
    write_table_atomically(pa.table({"image_id": ["bad"]}), tmp_path / "errors.parquet")
    return tmp_path


def test_rows_in_any_order(dataset):
    reader = ShardReader(dataset)
    assert len(reader) == 195
    assert len(reader.image_ids) == 195
    for row in [194, 0, 129, 130, 131, 63, 64]:
        image_id = reader.image_ids[row]
        assert reader.read(row) == {"image_id": image_id, "image": image_id.encode() * 1000}
        assert reader.index_of(image_id) == row
    assert (reader.image_ids[129], reader.image_ids[130], reader.image_ids[131]) == ("0-129", "1-0", "2-0")
    assert reader.read(5, ["image_id"]) == {"image_id": "0-5"}


def test_bad_rows_columns_and_ids(dataset):
    reader = ShardReader(dataset)
    for row in (-1, 195):
        with pytest.raises(IndexError):
            reader.read(row)
    with pytest.raises(KeyError, match="no column 'mask'"):
        reader.read(0, ["mask"])
    with pytest.raises(KeyError):
        reader.index_of("bad")


def test_cache_is_bounded_and_drops_the_least_recently_used(dataset):
    reader = ShardReader(dataset, cache_bytes=700_000)  # a group's images are about 300 kB
    for row in range(195):
        reader.read(row)
        assert reader._cached_bytes == sum(column.nbytes for column in reader._cache.values())
        assert reader._cached_bytes <= 700_000
    held = list(reader._cache)
    reader.read(194)
    assert set(reader._cache) == set(held)
    tiny = ShardReader(dataset, cache_bytes=1)
    assert tiny.read(100)["image_id"] == "0-100"
    assert len(tiny._cache) == 1


def test_few_files_stay_open(dataset, monkeypatch):
    monkeypatch.setattr(reader_module, "_MAX_OPEN_FILES", 1)
    reader = ShardReader(dataset, cache_bytes=1)
    for row in (0, 130, 140, 1):
        assert reader.read(row)["image_id"] == reader.image_ids[row]
        assert len(reader._files) == 1


def test_pickled_reader_reads_on_and_takes_no_data_along(dataset):
    reader = ShardReader(dataset)
    reader.read(0)
    assert len(pickle.dumps(reader)) < 3000
    clone = copy.copy(reader)  # by the same state that pickling carries
    assert not clone._cache
    assert clone.read(194) == reader.read(194)


def test_flat_folders_are_read_too(dataset):
    reader = ShardReader(dataset / "shards")
    assert reader.read(0)["image_id"] == "0-0"


def test_unusable_folders_are_user_errors(dataset, tmp_path):
    with pytest.raises(UserError, match="absent is not a folder"):
        ShardReader(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no Parquet shards"):
        ShardReader(tmp_path / "empty")
    write_table_atomically(pa.table({"image_id": pa.array([], pa.string())}), tmp_path / "none/a.parquet")
    with pytest.raises(UserError, match="without a row"):
        ShardReader(tmp_path / "none")
    (dataset / "shards/part-00001.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"part-00001.parquet is not a readable Parquet file"):
        ShardReader(dataset)
