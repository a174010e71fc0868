"""Tars of WebDataset, written with tarfile and, where it matters, read back byte by byte."""

import io
import json
import tarfile
from typing import Any

import pytest
from PIL import Image

from ray_wsss.data.sources.contents import Contents
from ray_wsss.data.sources.webdataset import read_webdataset
from ray_wsss.errors import UserError


def picture(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (colour, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path, files: dict[str, bytes], mode: Any = "w") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def by_id(source) -> dict:
    return {row.image_id: row for row in source.rows}


def test_images_are_read_where_they_lie_and_numbers_are_indices(tmp_path):
    images = {f"{k:04d}": picture(k) for k in range(3)}
    for shard, offset in (("a/0.tar", 0), ("b/0.tar", 1)):
        files = {}
        for key, image in images.items():
            files |= {f"{key}.jpg": image, f"{key}.cls": str((int(key) + offset) % 3).encode()}
        write_tar(tmp_path / shard, files)
    source = read_webdataset([str(tmp_path / "*/*.tar")], ["cat", "dog", "cow"])
    rows = by_id(source)
    assert {name: row.image_labels for name, row in rows.items()} == {
        "a/0/0000": (0,),
        "a/0/0001": (1,),
        "a/0/0002": (2,),
        "b/0/0000": (1,),
        "b/0/0001": (2,),
        "b/0/0002": (0,),
    }
    with Contents(source.rows) as contents:
        assert all(contents.read(row) == images[name[-4:]] for name, row in rows.items())
    assert by_id(read_webdataset([str(tmp_path)])).keys() == rows.keys()
    assert read_webdataset([str(tmp_path / "a/0.tar")]).class_names == ["0", "1", "2"]


def test_labels_as_text_and_in_json(tmp_path):
    files = {
        "x/a.png": picture(),
        "x/a.txt": b"dog; cat\n",
        "x/a.json": json.dumps({"labels": ["cow"], "none": []}).encode(),
        "b.jpg": picture(),
        "b.json": b'{"labels": "dog", "none": "cat"}',
        "c.d.jpg": picture(),
        "e.jpg": picture(),
        "e.txt": b"nothing",
        "e.json": b"[]",
        "plain": picture(),
    }
    tar = write_tar(tmp_path / "t.tar", files)
    source = read_webdataset([tar], label_key="txt", none_label="nothing")
    assert source.class_names == ["cat", "dog"]
    labels = {name: row.image_labels for name, row in by_id(source).items()}
    assert labels == {"t/x/a": (0, 1), "t/b": None, "t/e": ()}
    assert dict(source.passed_over) == {".d.jpg": 1, "": 1}
    rows = by_id(read_webdataset([tar], label_key="json.labels", image_key="jpg"))
    assert (rows["t/b"].image_labels, rows["t/e"].error) == ((0,), "its .json is no object with fields")
    assert by_id(read_webdataset([tar], label_key="json.none"))["t/x/a"].image_labels == ()


def test_samples_that_are_unclear_are_error_rows(tmp_path):
    files = {"a.jpg": picture(), "a.png": picture(), "a.cls": b"0", "b.jpg": picture(), "b.cls": b"7"}
    rows = by_id(read_webdataset([write_tar(tmp_path / "t.tar", files)], ["cat"]))
    assert "several images: jpg, png; choose by --image-key" in (rows["t/a"].error or "")
    assert rows["t/b"].error == "its label is 7; expected 0 to 0"
    rows = by_id(read_webdataset([str(tmp_path)], ["cat"], image_key="png"))
    assert rows["t/a"].error is None


def test_a_cut_tar_keeps_what_is_before_the_cut(tmp_path):
    files = {f"{k}.{end}": content for k in range(4) for end, content in (("jpg", picture()), ("cls", b"0"))}
    write_tar(tmp_path / "whole.tar", files)
    content = (tmp_path / "whole.tar").read_bytes()
    for size in (3000, 4 * 1024 + 2048, 9000):  # in a header, in an image, before the end mark
        (tmp_path / "cut.tar").write_bytes(content[:size])
        rows = by_id(read_webdataset([str(tmp_path / "cut.tar")], ["cat"]))
        assert rows["cut/0"].error is None
        assert "can't be read beyond" in (rows["cut"].error or "")


@pytest.mark.parametrize("kind", ["text", "compressed"])
def test_what_is_no_plain_tar_is_an_error_row(tmp_path, kind):
    path = tmp_path / "t.tar"
    if kind == "text":
        path.write_text("no tar" * 200)
    else:
        write_tar(path, {"a.jpg": picture()}, "w:gz")
    (row,) = read_webdataset([str(path)], ["cat"]).rows
    assert "expected a plain .tar" in (row.error or "")


def test_missing_tars_and_labels_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="fits no file"):
        read_webdataset([str(tmp_path / "*.tar")])
    tar = write_tar(tmp_path / "t.tar", {"a.jpg": picture(), "a.txt": b"cat"})
    with pytest.raises(UserError, match=r"has no label in files of .cls; expected another --label-key"):
        read_webdataset([tar])
