"""Random access to shards."""

import copy
import os
import pickle
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.data import piece_streams
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
        assert reader.find(image_id) == reader.read(row)
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
    assert reader.find("bad") is None


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


@pytest.fixture
def large_groups(tmp_path) -> tuple[Path, list[bytes]]:
    """A folder as version 0.1 wrote it with photos: two row groups of 24 images of 300 kB, and the images."""
    images = [bytes([k]) * 300_000 for k in range(48)]
    path = tmp_path / "large/shards/part-00000.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"image_id": [str(k) for k in range(48)], "image": pa.array(images, pa.binary())})
    pq.write_table(table, path, row_group_size=24, compression="none", use_dictionary=False)
    return tmp_path / "large", images


def test_large_row_groups_are_read_in_pieces(large_groups):
    folder, images = large_groups
    reader = ShardReader(folder, cache_bytes=8 * 2**20)
    assert reader.piece_bytes <= piece_streams.PIECE_BYTES
    groups, pieces = reader.places_of(range(48))
    assert groups.tolist() == [0] * 24 + [1] * 24
    assert pieces.tolist() == [k // 12 for k in range(24)] * 2
    for row in [0, 47, 30, 11, 12, 23, 3, 24, 46]:
        assert reader.read(row) == {"image_id": str(row), "image": images[row]}
        assert reader._cached_bytes <= 8 * 2**20
    clone = pickle.loads(pickle.dumps(reader))
    assert clone.read(40) == reader.read(40)


def test_pieces_in_order_are_read_once_from_several_groups_at_a_time(large_groups, monkeypatch):
    folder, _ = large_groups
    opened = []
    reader = ShardReader(folder, cache_bytes=1)
    monkeypatch.setattr(piece_streams.PieceStreams, "_start", _noting(opened))
    for row in (0, 24, 12, 36):
        reader.read(row, ["image"])
    assert opened == [0, 1]
    reader.read(2, ["image"])  # an earlier piece
    assert opened == [0, 1, 0]


def _noting(opened: list[int]):
    start = piece_streams.PieceStreams._start

    def noting(self, path, group, name, rows):
        opened.append(group)
        return start(self, path, group, name, rows)

    return noting


def test_places_in_small_groups(dataset):
    groups, pieces = ShardReader(dataset).places_of([194, 0, 63, 64, 130, 131])
    assert groups.tolist() == [4, 0, 0, 1, 3, 4]
    assert not pieces.any()


def test_one_huge_image_does_not_shrink_the_window(tmp_path):
    sizes = [1000] * 40 + [50_000_000]
    table = pa.table({"image_id": [str(k) for k in range(41)], "image": [bytes(size) for size in sizes]})
    write_table_atomically(table, tmp_path / "a.parquet", rows_per_group=1)
    assert ShardReader(tmp_path).piece_bytes < 2000


# Footers


def make_shards(folder: Path, count: int) -> None:
    for part in range(count):
        write_table_atomically(pa.table({"image_id": [str(part)]}), folder / f"part-{part:02d}.parquet")


def age(folder: Path) -> None:
    """Let the files be old enough that a change would show in their times."""
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))


def test_footers_are_read_side_by_side(tmp_path, monkeypatch):
    make_shards(tmp_path, 16)
    together, read = Barrier(8), reader_module._read_footer

    def waiting(path):
        together.wait(timeout=30)  # broken unless eight reads are on at once
        return read(path)

    monkeypatch.setattr(reader_module, "_read_footer", waiting)
    assert ShardReader(tmp_path).image_ids == [str(part) for part in range(16)]


def test_footers_are_read_again_only_after_a_change(tmp_path, monkeypatch):
    make_shards(tmp_path, 4)
    paths, read = [], reader_module._read_footer
    monkeypatch.setattr(reader_module, "_read_footer", lambda path: paths.append(path) or read(path))
    ShardReader(tmp_path)
    ShardReader(tmp_path)  # the files are so new that a change might not show
    assert len(paths) == 8
    age(tmp_path)
    for _ in range(10):
        assert len(ShardReader(tmp_path)) == 4
    assert len(paths) == 12
    changed = tmp_path / "part-01.parquet"
    write_table_atomically(pa.table({"image_id": ["x", "y"]}), changed)
    os.utime(changed, ns=(10**18 + 1, 10**18 + 1))
    assert len(ShardReader(tmp_path)) == 5
    changed.unlink()
    assert ShardReader(tmp_path).image_ids == ["0", "2", "3"]
