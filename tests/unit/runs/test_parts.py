"""Parts: there in full or not at all, and never taken for another run's."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.runs.parts import Parts
from ray_wsss.runs.read_chunks import Chunk
from ray_wsss.runs.tally import Tally
from ray_wsss.storage import replace_atomically

CHUNKS = [Chunk(index, "shard", 3 * index, 3) for index in range(4)]
TABLE = pa.table({"image_id": ["a", "b", "c"], "error": [None, "why", None]})
TALLY = Tally(images=2, prompts=9, masks=4, errors=1, seconds={"encode": 1.5})


@pytest.fixture
def parts(tmp_path) -> Parts:
    return Parts(tmp_path, "fingerprint")


def test_a_part_keeps_rows_and_counts_but_no_seconds(parts):
    parts.write(CHUNKS[0], TABLE, TALLY)
    assert pq.read_table(parts.path(0)).equals(TABLE)
    assert parts.read_tally(CHUNKS[0]) == Tally(images=2, prompts=9, masks=4, errors=1)
    parts.write(CHUNKS[0], TABLE, Tally(images=2, unknown=1))
    assert parts.read_tally(CHUNKS[0]) == Tally(images=2, unknown=1)


def test_equal_content_is_equal_bytes(parts):
    parts.write(CHUNKS[0], TABLE, TALLY)
    before = parts.path(0).read_bytes()
    parts.write(CHUNKS[0], TABLE, Tally(images=2, prompts=9, masks=4, errors=1, seconds={"encode": 99.0}))
    assert parts.path(0).read_bytes() == before


def test_a_part_of_another_run_is_none_of_this_one(parts):
    for chunk in CHUNKS[:3]:
        parts.write(chunk, TABLE, TALLY)
    assert set(parts.finished(CHUNKS)) == {0, 1, 2}
    other = Parts(parts.out, "another")
    assert other.finished(CHUNKS) == {}
    other.write(CHUNKS[1], TABLE, Tally(images=3))
    assert other.finished(CHUNKS) == {1: Tally(images=3)}
    assert set(parts.finished(CHUNKS)) == {0, 2}


def test_a_part_that_is_not_there_is_not_looked_for(parts, monkeypatch):
    for chunk in CHUNKS[1:3]:
        parts.write(chunk, TABLE, TALLY)
    tried = []
    monkeypatch.setattr(Parts, "read_tally", lambda self, chunk: tried.append(chunk.index))
    assert parts.finished(CHUNKS) == {}
    assert sorted(tried) == [1, 2]


@pytest.mark.parametrize("kept", [0, 1, 4, 0.5, -20, -8, -1])
def test_a_truncated_part_is_made_again(parts, kept):
    parts.write(CHUNKS[0], TABLE, TALLY)
    data = parts.path(0).read_bytes()
    parts.path(0).write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    assert parts.read_tally(CHUNKS[0]) is None


def test_what_is_no_part(parts):
    parts.path(0).mkdir(parents=True)
    parts.path(1).write_bytes(b"no Parquet" * 100)
    pq.write_table(TABLE, parts.path(2))
    foreign = {b"ray_wsss": b'{"fingerprint": "fingerprint", "images": 3, "cats": 3}'}
    pq.write_table(TABLE.replace_schema_metadata(foreign), parts.path(3))
    assert parts.finished(CHUNKS) == {}


def test_a_part_of_another_number_of_rows_is_made_again(parts):
    parts.write(CHUNKS[0], TABLE.slice(0, 2), TALLY)
    assert parts.read_tally(CHUNKS[0]) is None


@pytest.mark.parametrize(
    "note", [b"{", b"[1]", b"{}", b'{"fingerprint": "fingerprint", "images": 3, "colours": 1}']
)
def test_a_note_that_is_not_ours(parts, note):
    path = parts.path(0)
    path.parent.mkdir()
    pq.write_table(TABLE.replace_schema_metadata({"ray_wsss": note}), path)
    assert parts.read_tally(CHUNKS[0]) is None


def test_the_tables_own_metadata_and_row_groups(parts):
    parts.write(CHUNKS[0], TABLE.replace_schema_metadata({"theirs": "kept"}), TALLY, rows_per_group=2)
    footer = pq.read_metadata(parts.path(0))
    assert footer.metadata is not None
    assert footer.metadata[b"theirs"] == b"kept"
    assert [footer.row_group(k).num_rows for k in range(footer.num_row_groups)] == [2, 1]
    assert parts.read_tally(CHUNKS[0]) is not None


def test_a_straggler_of_another_run_replaces_a_part(parts):
    parts.write(CHUNKS[0], TABLE, TALLY)
    Parts(parts.out, "another").write(CHUNKS[0], TABLE, TALLY)
    assert parts.read_tally(CHUNKS[0]) is None
    parts.write(CHUNKS[0], TABLE, TALLY)
    assert parts.read_tally(CHUNKS[0]) is not None


def test_strays(parts):
    assert list(parts.strays(CHUNKS)) == []
    parts.write(CHUNKS[0], TABLE, TALLY)
    assert list(parts.strays(CHUNKS)) == []
    parts.write(Chunk(17, "shard", 0, 3), TABLE, TALLY)
    with replace_atomically(parts.path(1)) as half:  # what a writer that is killed now leaves
        half.write_bytes(b"half")
        assert set(parts.strays(CHUNKS)) == {parts.path(17), half}
        assert set(parts.finished(CHUNKS)) == {0}


def test_a_writer_leaves_nothing_but_its_part(parts):
    for _ in range(2):
        parts.write(CHUNKS[1], TABLE, TALLY)
    assert [path.name for path in parts.path(1).parent.iterdir()] == ["part-000001.parquet"]
