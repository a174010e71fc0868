"""Tables of other forms: a word for none of the classes, one-hot columns, lists of URIs."""

import pytest

from ray_wsss.data.csv_labels import read_csv
from ray_wsss.errors import UserError


def read(folder, text: str, name: str = "labels.csv", **options):
    (folder / name).write_text(text)
    return read_csv(folder / name, **options)


def labels(source) -> dict:
    return {row.image_id: row.image_labels for row in source.rows}


def test_blank_is_unknown_and_a_word_is_none(tmp_path):
    source = read(tmp_path, "a.jpg,cat\nb.jpg,\nc.jpg,none\nd.jpg,\nd.jpg,none\n", none_label="none")
    assert source.class_names == ["cat"]
    assert labels(source) == {"a.jpg": (0,), "b.jpg": None, "c.jpg": (), "d.jpg": ()}
    assert not source.remarks


@pytest.mark.parametrize("lines", ["a.jpg,none;cat\n", "a.jpg,none\na.jpg,cat\n"])
def test_none_and_a_class_is_an_error_row(tmp_path, lines):
    first, second = read(tmp_path, f"{lines}b.jpg,cat\n", none_label="none").rows
    assert first.error == "it has the class 'cat' and also none of the classes"
    assert second.error is None


def test_a_word_for_none_that_no_line_has_is_remarked(tmp_path):
    source = read(tmp_path, "a.jpg,cat\nb.jpg,None\n", none_label="none")
    assert source.class_names == ["None", "cat"]
    assert "no line of" in source.remarks[0]
    assert "'none'" in source.remarks[0]


def test_one_hot_columns_as_roboflow_writes_them(tmp_path):
    source = read(tmp_path, "filename, dog, cat\na.jpg, 1, 0\nb.jpg, 1, 1\nc.jpg, 0, 0\nd.jpg, 0.0, 1.0\n")
    assert source.class_names == ["dog", "cat"]  # in the order of the columns
    assert labels(source) == {"a.jpg": (0,), "b.jpg": (0, 1), "c.jpg": (), "d.jpg": (1,)}


def test_one_hot_cells_that_are_unknown(tmp_path):
    source = read(tmp_path, "id,dog,cat\na.jpg,1,-1\nb.jpg,,\nc.jpg,0,\n")
    assert labels(source) == {"a.jpg": None, "b.jpg": None, "c.jpg": None}
    remark = "labels counted as unknown, because those of some class are"
    found = [row.remarks for row in source.rows]
    assert found == [((remark, "class 'cat'"),), (), ((remark, "class 'cat'"),)]


def test_one_hot_column_of_none(tmp_path):
    source = read(tmp_path, "id,cat,Unlabeled\na.jpg,1,0\nb.jpg,0,1\nc.jpg,1,1\n", none_label="Unlabeled")
    assert source.class_names == ["cat"]
    assert [(row.image_labels, row.error is None) for row in source.rows] == [
        ((0,), True),
        ((), True),
        ((0,), False),
    ]


def test_one_hot_of_one_class_is_asked_for(tmp_path):
    assert read(tmp_path, "id,cat\na.jpg,1\nb.jpg,0\n").class_names == ["0", "1"]
    source = read(tmp_path, "id,cat\na.jpg,1\nb.jpg,0\n", one_hot=True)
    assert (source.class_names, labels(source)) == (["cat"], {"a.jpg": (0,), "b.jpg": ()})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("id,cat,split\na.jpg,1,train\n", {}, "line 2 has 'train' in column 'split'"),
        ("id,cat,dog\na.jpg,1\n", {}, "line 2 has 2 cells"),
        ("id,cat,dog\n,1,0\n", {}, "line 2 has 3 cells, the first is ''"),
        ("id,cat,cat\na.jpg,1,0\n", {}, "repeated class name"),
        ("a.jpg,1\n", {"one_hot": True}, "has no header"),
        ("id,dog,cat\na.jpg,1,0\n", {"classes": ["cat"]}, "line 2 has label 'dog'"),
        ("a.jpg,cat\n", {"classes": ["cat", "none"], "none_label": "none"}, "--none-label"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, text, options, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, **options)


def test_paths_are_relative_to_the_table_and_uris_stay(tmp_path):
    text = "a.jpg,cat\nhttps://host/x?id=1,cat\ns3://bucket/b.jpg,cat\nfile:///etc/c.jpg,cat\nftp://h/d.jpg,cat\n"
    a, web, store, local, other = read(tmp_path, text).rows
    assert a.path == str(tmp_path / "a.jpg")
    assert (web.path, web.error) == ("https://host/x?id=1", None)
    assert (store.path, store.error) == ("s3://bucket/b.jpg", None)
    assert "URIs of scheme 'file' are not read" in (local.error or "")
    assert "'ftp'" in (other.error or "")


@pytest.mark.parametrize("uri", ["https://me:secret@host/a.jpg", "s3://key:secret@bucket/a.jpg"])
def test_credentials_in_a_uri_are_refused_unnamed(tmp_path, uri):
    with pytest.raises(UserError, match="has credentials in it") as raised:
        read(tmp_path, f"{uri},cat\n")
    assert "secret" not in str(raised.value)


def test_a_text_list_has_a_path_in_each_line(tmp_path):
    source = read(tmp_path, "https://host/a,b.jpg\n\n c.jpg \n", "list.txt", classes=["cat"])
    assert labels(source) == {"https://host/a,b.jpg": None, "c.jpg": None}
    assert source.class_names == ["cat"]
    with pytest.raises(UserError, match="--classes"):
        read(tmp_path, "a.jpg\n", "list.txt")


def test_links_out_of_the_folder_are_error_rows(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_text("x")
    (root / "sub/link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "out").symlink_to(tmp_path)
    text = "sub/link.jpg,cat\nout/secret.jpg,cat\nsub/plain.jpg,cat\n" + "n" * 300 + ".jpg,cat\n"
    link, folder, plain, long = read(tmp_path, text, images=root).rows
    assert "leaves the folder" in (link.error or "")
    assert "leaves the folder" in (folder.error or "")
    assert (plain.path, plain.error) == (str(root / "sub/plain.jpg"), None)
    assert long.error or long.path.endswith(".jpg")
