"""Parts: there in full or not at all, and never taken for another run's."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.stages.chunks import Chunk
from ray_wsss.stages.parts import Parts
from ray_wsss.stages.tally import Tally

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


def test_equal_content_is_equal_bytes(parts):
    parts.write(CHUNKS[0], TABLE, TALLY)
    before = parts.path(0).read_bytes()
    parts.write(CHUNKS[0], TABLE, Tally(images=2, prompts=9, masks=4, errors=1, seconds={"encode": 99.0}))
    assert parts.path(0).read_bytes() == before


def test_what_is_no_part_of_this_run(parts):
    for chunk in CHUNKS[:3]:
        parts.write(chunk, TABLE, TALLY)
    assert set(parts.finished(CHUNKS)) == {0, 1, 2}
    assert Parts(parts.out, "another").finished(CHUNKS) == {}
    parts.path(0).write_bytes(parts.path(0).read_bytes()[:-20])
    parts.path(1).write_bytes(b"no Parquet")
    pq.write_table(TABLE, parts.path(2))  # nobody's
    assert parts.finished(CHUNKS) == {}


def test_a_part_of_another_number_of_rows_is_made_again(parts):
    parts.write(CHUNKS[0], TABLE.slice(0, 2), TALLY)
    assert parts.read_tally(CHUNKS[0]) is None


def test_strays(parts):
    parts.write(CHUNKS[0], TABLE, TALLY)
    parts.write(Chunk(17, "shard", 0, 3), TABLE, TALLY)
    temporary = parts.path(0).with_name(".part-000001.parquet.0123.tmp")
    temporary.write_bytes(b"half")
    assert set(parts.strays(CHUNKS)) == {parts.path(17), temporary}


def test_tallies_add_up():
    total = Tally()
    for _ in range(2):
        total.add(TALLY)
    with total.phase("encode"), total.phase("write"):
        pass
    assert (total.images, total.prompts, total.masks, total.errors) == (4, 18, 8, 2)
    assert total.seconds["encode"] > 3.0
    assert 0 < total.seconds["write"] <= total.seconds["encode"] - 3.0
    assert TALLY.seconds == {"encode": 1.5}
