"""Many small reads at a time."""

from threading import Barrier

import pytest

from ray_wsss.storage import read_side_by_side


def test_as_many_as_there_are_threads_and_in_order() -> None:
    together = Barrier(8)

    def read(item: int) -> int:
        together.wait(timeout=30)  # broken unless eight reads are on at once
        return -item

    assert list(read_side_by_side(read, range(16))) == [-item for item in range(16)]


def test_more_than_are_planned_at_a_time() -> None:
    assert list(read_side_by_side(str, range(2500))) == [str(item) for item in range(2500)]
    assert list(read_side_by_side(str, [])) == []


def test_what_a_read_raises() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(read_side_by_side(int, ["1", "one"]))
