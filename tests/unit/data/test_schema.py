"""Metadata and atomic writes."""

import json
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_wsss.data.schema import BYTES_PER_GROUP, DatasetMetadata, cut_into_groups, write_table_atomically
from ray_wsss.errors import UserError
from ray_wsss.storage import replace_atomically

METADATA = DatasetMetadata(
    class_names=("cat", "Löwe"), source="folder", images=4, unlabelled=1, empty=2, errors=2, has_masks=False
)


def test_metadata_round_trip(tmp_path):
    METADATA.save(tmp_path / "new")
    assert DatasetMetadata.load(tmp_path / "new") == METADATA
    content = json.loads((tmp_path / "new/metadata.json").read_text(encoding="utf-8"))
    assert content["counts"] == {"images": 4, "unlabelled": 1, "empty": 2, "errors": 2}
    assert "order_seed" not in content  # as in version 0.1
    shuffled = replace(METADATA, order_seed=0)
    shuffled.save(tmp_path / "shuffled")
    assert DatasetMetadata.load(tmp_path / "shuffled") == shuffled


def test_metadata_of_version_1_know_no_empty_images(tmp_path):
    counts = {"images": 4, "unlabelled": 3, "errors": 2}
    content = {"format_version": 1, "class_names": ["cat"], "counts": counts, "source": "csv"}
    (tmp_path / "metadata.json").write_text(json.dumps(content | {"has_masks": False}))
    metadata = DatasetMetadata.load(tmp_path)
    assert (metadata.images, metadata.unlabelled, metadata.empty, metadata.errors) == (4, 3, 0, 2)


def test_unusable_metadata_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="absent is not a finished data set"):
        DatasetMetadata.load(tmp_path / "absent")
    path = tmp_path / "metadata.json"
    for text, message in [
        ("{", "not readable JSON"),
        ("[]", "format version None"),
        ('{"format_version": 3}', "format version 3; expected 1 or 2"),
        ('{"format_version": 1}', "lacks a field"),
        ('{"format_version": 2, "counts": {"images": 1, "unlabelled": 0, "errors": 0}}', "'empty'"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=f"metadata.json.*{message}"):
            DatasetMetadata.load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail_half_way() -> None:
        with replace_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tables_are_written_uncompressed_in_small_row_groups(tmp_path):
    path = tmp_path / "shards/part-00000.parquet"
    table = pa.table({"image": pa.array([bytes(1000)] * 150, pa.binary())})
    write_table_atomically(table, path)
    footer = pq.ParquetFile(path).metadata
    assert [footer.row_group(k).num_rows for k in range(footer.num_row_groups)] == [64, 64, 22]
    assert footer.row_group(0).column(0).compression == "UNCOMPRESSED"
    assert pq.read_table(path).equals(table)
    assert list(path.parent.iterdir()) == [path]


def test_row_groups_are_bounded_in_bytes(tmp_path):
    path = tmp_path / "part-00000.parquet"
    photos = [bytes(3_000_000)] * 70
    table = pa.table({"image": pa.array(photos, pa.binary()), "mask": pa.array([None] * 70, pa.binary())})
    write_table_atomically(table, path)
    footer = pq.ParquetFile(path).metadata
    groups = [footer.row_group(k) for k in range(footer.num_row_groups)]
    assert [group.num_rows for group in groups] == [5] * 12 + [4, 5, 1]  # a chunk of 64 rows ends a group
    assert all(group.total_byte_size <= 2**24 for group in groups)
    assert pq.read_table(path).equals(table)


@given(
    sizes=st.lists(st.integers(0, 2 * BYTES_PER_GROUP), max_size=200),
    rows_per_group=st.sampled_from([1, 7, 64]),
)
def test_cutting_into_groups(sizes, rows_per_group):
    groups = list(cut_into_groups(sizes, rows_per_group))
    assert [row for group in groups for row in group] == list(range(len(sizes)))
    for group in groups:
        assert len({row // rows_per_group for row in group}) <= 1
        assert len(group) <= 1 or sum(sizes[row] for row in group) <= BYTES_PER_GROUP
    for group, following in pairwise(groups):  # no group could have taken the next row in
        full = sum(sizes[row] for row in group) + sizes[following.start] > BYTES_PER_GROUP
        assert full or following.start % rows_per_group == 0
