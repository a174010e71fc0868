"""Tables of path,label;label."""

import pytest

from ray_wsss.data.csv_labels import read_csv
from ray_wsss.errors import UserError


def read(folder, text: str | bytes, classes=None):
    table = folder / "labels.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(table, folder, classes)


@pytest.mark.parametrize("header", ["", "path,labels\n", "image , label\r\n", "file\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_labels_with_and_without_header(tmp_path, header, mark):
    text = header + 'b.jpg,dog; cat\n"odd, name.jpg","dog"\n\nnone.jpg,\nshort.png\nsub/c.JPG, ünique\n'
    source = read(tmp_path, mark + text.encode())
    class_names, rows = source.class_names, source.rows
    assert class_names == ["cat", "dog", "ünique"]
    assert [(row.image_id, row.image_labels) for row in rows] == [
        ("b.jpg", (0, 1)),
        ("odd, name.jpg", (1,)),
        ("none.jpg", None),
        ("short.png", None),
        ("sub/c.JPG", (2,)),
    ]
    assert rows[4].path == str(tmp_path / "sub/c.JPG")


def test_a_first_line_without_extension_is_data_if_the_file_is_there(tmp_path):
    (tmp_path / "0001").touch()
    assert [row.image_id for row in read(tmp_path, "0001,cat\n0002,cat\n").rows] == ["0001", "0002"]


def test_lines_of_one_path_add_up(tmp_path):
    rows = read(tmp_path, "a.jpg,cat\nb.jpg,cat\n./a.jpg,dog\na.jpg,cat\n").rows
    assert [(row.image_id, row.image_labels) for row in rows] == [("a.jpg", (0, 1)), ("b.jpg", (0,))]


def test_given_classes_keep_their_order(tmp_path):
    source = read(tmp_path, "a.jpg,cat\n", ["dog", "cat"])
    class_names, rows = source.class_names, source.rows
    assert (class_names, rows[0].image_labels) == (["dog", "cat"], (1,))
    with pytest.raises(UserError, match=r"labels.csv line 2 has label 'cow'; expected one of: dog, cat"):
        read(tmp_path, "a.jpg,cat\nb.jpg,cow\n", ["dog", "cat"])


def test_a_path_that_leaves_the_folder_is_an_error_row(tmp_path):
    rows = read(tmp_path, "a.jpg,cat\n../b.jpg,cat\n/c.jpg,cat\n").rows
    assert [row.error is None for row in rows] == [True, False, False]
    assert "leaves the folder" in (rows[1].error or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no image"),
        ("path,label\n", "lists no image"),
        ("a.jpg,\nb.jpg\n", "no label in any line"),
        ("a.jpg,cat,dog\n", "line 1 is 'a.jpg,cat,dog'; expected 'path,label;label'"),
        ("a.jpg,cat\n,dog\n", "line 2 is ',dog'"),
        ('a.jpg,"cat\n', "not valid CSV"),
        (b"a.jpg,\xff\n", "not UTF-8"),
    ],
)
def test_malformed_tables_are_user_errors(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_missing_table_or_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"absent.csv can't be read"):
        read_csv(tmp_path / "absent.csv", tmp_path)
    with pytest.raises(UserError, match="absent is not a folder"):
        read_csv(tmp_path / "labels.csv", tmp_path / "absent")
