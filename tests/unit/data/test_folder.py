"""A folder per class."""

import pytest

from ray_wsss.data.folder import read_folder
from ray_wsss.errors import UserError


def write(root, **contents: str):
    for name, content in contents.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_classes_labels_and_ids(tmp_path):
    write(tmp_path, dog__b_JPG="1", cat__deep__a_png="22", loose_jpeg="333", dog__notes_txt="no image")
    write(tmp_path, _hidden__x_jpg="4", cat___hidden_jpg="5", empty__readme_md="no image")
    source = read_folder(tmp_path)
    class_names, rows = source.class_names, source.rows
    assert class_names == ["cat", "dog"]
    assert {row.image_id: row.image_labels for row in rows} == {
        "loose.jpeg": None,
        "cat/deep/a.png": (0,),
        "dog/b.JPG": (1,),
    }
    assert all(row.error is None for row in rows)
    assert rows[1].path == str(tmp_path / "cat/deep/a.png")


def test_equal_files_become_one_row_with_all_labels(tmp_path):
    write(tmp_path, dog__x_jpg="same", cat__y_jpg="same", cat__z_jpg="same", ant__w_jpg="diff", w_jpg="same")
    rows = read_folder(tmp_path).rows
    assert {row.image_id: row.image_labels for row in rows} == {"w.jpg": (1, 2), "ant/w.jpg": (0,)}


def test_empty_files_stay_apart(tmp_path):
    write(tmp_path, dog__x_jpg="", cat__y_jpg="")
    assert [row.image_id for row in read_folder(tmp_path).rows] == ["cat/y.jpg", "dog/x.jpg"]


def test_images_of_the_none_folder_have_no_class(tmp_path):
    write(tmp_path, dog__x_jpg="dog", no__y_jpg="yard", no__z_jpg="yard", loose_jpg="?", no__dog_jpg="dog")
    source = read_folder(tmp_path, "no")
    assert source.class_names == ["dog"]
    rows = {row.image_id: row for row in source.rows}
    assert {name: row.image_labels for name, row in rows.items()} == {
        "loose.jpg": None,
        "no/y.jpg": (),
        "dog/x.jpg": (0,),
    }
    assert "in 'dog' and, as an equal file, in 'no' (none)" in (rows["dog/x.jpg"].error or "")
    assert all(row.error is None for name, row in rows.items() if name != "dog/x.jpg")
    with pytest.raises(UserError, match=r"absent has no images; .*--none-folder"):
        read_folder(tmp_path, "absent")


def test_links_out_of_the_folder_and_dangling_links(tmp_path):
    root = tmp_path / "root"
    write(tmp_path, secret_jpg="x", root__cat__a_jpg="y")
    (root / "cat/out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "cat/gone.jpg").symlink_to(root / "nowhere.jpg")
    rows = {row.image_id: row for row in read_folder(root).rows}
    assert "leaves the folder" in (rows["cat/out.jpg"].error or "")
    assert rows["cat/gone.jpg"].error is None  # found missing when read
    assert len(rows) == 3


def test_unusable_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        read_folder(tmp_path / "absent")
    write(tmp_path, loose_jpg="1", notes__a_txt="2")
    with pytest.raises(UserError, match="has no class folder"):
        read_folder(tmp_path)
