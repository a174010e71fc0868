"""Rows of a source on disk are those in memory; equal names are found without keeping the names."""

import errno
import io
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ray_wsss.data.csv_labels import read_csv
from ray_wsss.data.schema import SourceRow
from ray_wsss.data.sources import rows
from ray_wsss.data.sources.names import Names
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import plan, plan_shards, read_plan, write_plan


def make_rows(count: int) -> list[SourceRow]:
    """Rows of every kind."""
    made = [SourceRow(image_id=f"{k}", path=f"/a/{k}.jpg", image_labels=(k % 3,)) for k in range(count)]
    made[1] = SourceRow(image_id="1", path="https://a.org/1.jpg", stated_hw=(3, 4), remarks=(("a", "b"),))
    made[-1] = SourceRow(image_id="\udcff", path="", error="gone", image_labels=())
    return made


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BATCH", 4)


def on_disk(given: list[SourceRow]) -> SourceRows:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_IN_MEMORY", 4)
        spilled = SourceRows.of(given)
    assert len(spilled.table) == 0
    return spilled


@pytest.mark.usefixtures("small_batches")
def test_rows_on_disk_are_those_in_memory() -> None:
    given = make_rows(30)
    spilled, kept = on_disk(given), SourceRows.of(given)
    assert len(kept.table) == 30
    assert (len(spilled), list(spilled), list(kept)) == (30, given, given)
    assert spilled == kept
    assert spilled != on_disk(given[::-1])
    assert [spilled[k] for k in (0, 17, -1)] == [given[k] for k in (0, 17, -1)]
    assert list(spilled[3:21:5]) == given[3:21:5]
    order = np.random.default_rng(0).permutation(30)[:20]
    assert list(spilled.take(order)) == [given[k] for k in order]
    assert [spilled.any_remote, on_disk(given[2:]).any_remote] == [True, False]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("clumps", [None, np.repeat(np.arange(10), 3)])
def test_a_plan_is_read_a_part_at_a_time(
    clumps: np.ndarray | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = make_rows(30)
    shards = list(plan_shards(given, 4, 0, clumps))
    assert [len(shard) for shard in shards] == [4] * 7 + [2]
    if clumps is None:
        shuffled = list(given)
        random.Random(0).shuffle(shuffled)
        assert [row for shard in shards for row in shard] == shuffled
    monkeypatch.setattr(plan, "_ROWS_AT_A_TIME", 7)
    monkeypatch.setattr(plan, "SHARDS_PER_PART", 3)
    assert write_plan(tmp_path, plan_shards(on_disk(given), 4, 0, clumps)) == 8
    assert [read_plan(tmp_path, k) for k in range(8)] == shards


@pytest.mark.usefixtures("small_batches")
def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rows, "TemporaryFile", lambda **_: FullDisk())
    with pytest.raises(UserError, match=r"rows of the source fill .*No space left.*TMPDIR"):
        on_disk(make_rows(30))


def test_first_of_equal_names() -> None:
    given = [random.Random(k).choice("abcdefgh\n\udcff") * (k % 4) for k in range(500)]
    found = Names()
    for name in given:
        found.add(name)
    assert list(found) == list(found) == given
    assert found.first_equal().tolist() == [given.index(name) for name in given]
    assert Names().first_equal().tolist() == []


def _peak_of_reading(table: Path) -> int:
    """Bytes."""
    tracemalloc.start()
    try:
        read_csv(table)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_table_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's objects and NumPy's arrays; each path alone would take 100 bytes."""
    monkeypatch.setattr(rows, "_BATCH", 128)
    monkeypatch.setattr(rows, "_IN_MEMORY", 128)
    peaks = []
    for count in (1_000, 4_000):
        lines = (f"{k // 1000:04d}/{k:042d}.jpg,class {k % 100}\n" for k in (*range(count), 3))
        (tmp_path / "labels.csv").write_text("".join(lines))
        # The least of three: threads of other tests may allocate meanwhile.
        peaks.append(min(_peak_of_reading(tmp_path / "labels.csv") for _ in range(3)))
        source = read_csv(tmp_path / "labels.csv")
        assert (len(source.rows), source.rows[-1].image_id[-9:]) == (count, f"{count - 1:05d}.jpg")
    assert (peaks[1] - peaks[0]) / 3_000 < 60
