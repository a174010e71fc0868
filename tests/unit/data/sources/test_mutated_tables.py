"""Tables with mutated bytes: a sentence for the user, or a row for every line; never a bare exception."""

import csv
import io
import posixpath
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_wsss.data.csv_labels import read_csv
from ray_wsss.errors import UserError

TABLES = (
    b"path,label\na.jpg,cat\nb.jpg,\nc/d.png,dog;cat\ne.jpg,none\n",
    b"id,cat,dog\na.jpg,1,0\nb.jpg,0,0\nc.jpg,-1,1\nd.jpg,,\n",
    b"path,label,x1,y1,x2,y2\na.jpg,cat,1,2,3,4\nb.jpg,dog,5,6\na.jpg,cat,7,8,1\nc.jpg,cat\n",
    b'https://host/a.jpg?x=1,cat\ns3://bucket/b.jpg,dog\n"q, r.jpg",\xc3\xbc\n',
)
PIECES = (
    b",",
    b"\n",
    b'"',
    b";",
    b"\0",
    b"\xff",
    b"..",
    b"/",
    b"://",
    b"none",
    b"1",
    b"nan",
    b"\r",
    b"x" * 300,
)

mutations = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 6), st.one_of(st.sampled_from(PIECES), st.binary(max_size=3))),
    min_size=1,
    max_size=8,
)


def mutate(table: bytes, changes) -> bytes:
    for where, removed, added in changes:
        at = int(where * len(table))
        table = table[:at] + added + table[at + removed :]
    return table


def paths_in(table: bytes) -> set[str]:
    """Paths of all lines, by the csv module alone."""
    lines = csv.reader(io.StringIO(table.decode("utf-8-sig"), newline=""), skipinitialspace=True)
    cells = [line[0].strip() for line in lines if any(cell.strip() for cell in line)]
    return {cell if "://" in cell else posixpath.normpath(cell) for cell in cells}


def check(folder: Path, table: bytes) -> None:
    (folder / "t.csv").write_bytes(table)
    try:
        rows = read_csv(folder / "t.csv", none_label="none").rows
    except UserError:
        return
    found = {row.image_id for row in rows}
    lost = paths_in(table) - found
    assert found <= paths_in(table)
    assert len(found) == len(rows)
    # The first line may be a header.
    assert len(lost) <= 1
    assert all(row.error or row.path for row in rows)


COMMON: Any = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=100, **COMMON)
@given(table=st.sampled_from(TABLES), changes=mutations)
def test_mutated_tables(tmp_path, table, changes):
    check(tmp_path, mutate(table, changes))


@pytest.mark.slow
@settings(max_examples=2000, **COMMON)
@given(table=st.sampled_from(TABLES), changes=mutations)
def test_many_mutated_tables(tmp_path, table, changes):
    check(tmp_path, mutate(table, changes))
