"""Paths here and in a store: what is read there is what was written, and errors say what to do."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.data.reader import open_parquet
from ray_wsss.errors import UserError
from ray_wsss.storage import (
    FoundFile,
    cached_file,
    copy_file,
    fetch_once,
    find_files,
    growing_folder,
    is_remote,
    local_file,
    make_folder,
    parse_path,
    remove_tree,
    replace_atomically,
    why_unreachable,
)


@pytest.fixture(params=["here", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder, or one in a bucket."""
    return tmp_path / "root" if request.param == "here" else request.getfixturevalue("bucket") / "root"


def test_parse_path() -> None:
    assert parse_path("a/b") == Path("a/b")
    assert parse_path("file:///a/b") == Path("/a/b")
    there = parse_path("s3://bucket/a/b/")
    assert is_remote(there)
    assert not is_remote(parse_path("a"))
    assert (str(there), there.name, str(there / "c")) == ("s3://bucket/a/b", "b", "s3://bucket/a/b/c")
    assert there.absolute() == there
    assert pickle.loads(pickle.dumps(there)) == there


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s4://bucket/a", "'s4' is no"),
        ("gs://bucket/a", r"gs://bucket/a needs a package that is not installed: .*ray-wsss\[gcs\]"),
        ("s3://key:secret@bucket/a", "credentials in it; expected them in the environment"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        parse_path(text)
    assert "secret@" not in str(refusal.value)


def test_a_file_is_replaced_whole_or_not_at_all(root: Path) -> None:
    path = root / "a" / "b.txt"
    with replace_atomically(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError):
        _fail_half_way(path)
    assert path.read_text() == "one"
    assert list(find_files(root)) == ["a/b.txt"]


def _fail_half_way(path: Path) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text("two")
        raise ZeroDivisionError


def test_find_files_and_remove_tree(root: Path) -> None:
    before = time.time_ns()
    names = {"a.txt": "x", "b/c.txt": "yy", "b/d/e.txt": ""}
    for name, text in names.items():
        with replace_atomically(root / name) as temporary:
            temporary.write_text(text)
    found = find_files(root)
    assert {name: file.size for name, file in found.items()} == {n: len(t) for n, t in names.items()}
    assert all(abs(file.changed_ns - before) < 60e9 for file in found.values())
    remove_tree(root / "b")
    remove_tree(root / "b")
    assert list(find_files(root)) == ["a.txt"]
    make_folder(root / "c" / "d")
    make_folder(root / "c" / "d")


def test_links_are_found_but_not_entered(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    (tmp_path / "linked").symlink_to(tmp_path / "folder")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = find_files(tmp_path)
    assert sorted(found) == ["folder/a", "gone"]
    assert found["gone"] == FoundFile(0, 0)


def test_copies(root: Path, tmp_path: Path) -> None:
    with replace_atomically(root / "a.txt") as temporary:
        temporary.write_text("a")
    copy_file(root / "a.txt", tmp_path / "copies" / "a.txt")
    copy_file(tmp_path / "copies" / "a.txt", root / "b.txt")
    with local_file(root / "b.txt") as here:
        assert not is_remote(here)
        assert here.read_text() == "a"
    assert here.exists() == (not is_remote(root))


def test_a_cached_file_is_fetched_once_and_again_when_it_changed(bucket: Path, tmp_path: Path) -> None:
    (bucket / "weights").write_text("one")
    first = cached_file(bucket / "weights", tmp_path)
    first.write_text("still this")
    assert cached_file(bucket / "weights", tmp_path).read_text() == "still this"
    (bucket / "weights").write_text("other")
    assert cached_file(bucket / "weights", tmp_path).read_text() == "other"
    assert cached_file(first, tmp_path) == first


def test_parquet(root: Path) -> None:
    table = pa.table({"a": list(range(1000)), "b": ["x" * 100] * 1000})
    with replace_atomically(root / "t.parquet") as temporary:
        pq.write_table(table, temporary, row_group_size=100)
    with open_parquet(root / "t.parquet") as file:
        assert file.num_row_groups == 10
        assert file.read_row_group(3, use_threads=False).equals(table.slice(300, 100))


def test_a_growing_folder(root: Path) -> None:
    with growing_folder(root, every_s=0.1) as folder:
        with (folder / "log").open("a") as log:
            log.write("one ")
            log.flush()
            deadline = time.monotonic() + 20
            while not (root / "log").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            log.write("two")
        (folder / "other").write_text("other")
    assert (root / "log").read_text() == "one two"
    assert (root / "other").read_text() == "other"


def test_why_unreachable(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.exceptions

    error = botocore.exceptions.NoCredentialsError()
    assert why_unreachable(error) == "the storage can't be used: Unable to locate credentials"
    assert why_unreachable(ValueError("else")) is None


def test_what_processes_want_at_once_is_fetched_once(tmp_path):
    """Threads stand for processes: each opens the lock file itself."""
    fetched, path = [], tmp_path / "folder" / "weights"

    def fetch(temporary: Path) -> None:
        fetched.append(temporary)
        time.sleep(0.2)
        temporary.write_text("content")
        if len(fetched) == 1:
            raise ConnectionError

    def want(_: int) -> str | None:
        try:
            fetch_once(path, fetch)
        except ConnectionError:
            return None
        return path.read_text()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(want, range(6)))
    assert sorted(found, key=str) == [None, *["content"] * 5]
    assert len(fetched) == 2
    assert [p for p in path.parent.iterdir() if p.suffix != ".lock"] == [path]
