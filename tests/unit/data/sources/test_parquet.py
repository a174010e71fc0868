"""Parquet files with columns of the user's names, and what `datasets` saves."""

import io
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.data.images import ImageError
from ray_wsss.data.sources.classes import with_classes
from ray_wsss.data.sources.contents import Contents
from ray_wsss.data.sources.huggingface import read_huggingface
from ray_wsss.data.sources.parquet import Columns, read_parquet
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import plan_shards


def picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(k) for k in range(6)]


def write(path, labels, images=None, row_group_size: int = 4, **more) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"photo": PICTURES if images is None else images, "what": labels, **more})
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


COLUMNS = Columns(image="photo", label="what")


def labels(source) -> list:
    return [row.image_labels for row in source.rows]


@pytest.mark.parametrize(
    ("column", "classes", "names", "expected"),
    [
        (["dog", "cat", None, "", "no", "cat"], None, ["cat", "dog"], [(1,), (0,), None, None, (), (0,)]),
        ([2, 0, -1, None, 0, 2], None, ["0", "2"], [(1,), (0,), None, None, (0,), (1,)]),
        ([2, 0, -1, None, 0, 2], ["a", "b", "c"], ["a", "b", "c"], [(2,), (0,), None, None, (0,), (2,)]),
        (
            [["dog", "cat"], [], None, ["dog"], ["no"], ["dog"]],
            None,
            ["cat", "dog"],
            [(0, 1), (), None, (1,), (), (1,)],
        ),
        ([[1], [0, 1], [], [], [], []], ["a", "b"], ["a", "b"], [(1,), (0, 1), (), (), (), ()]),
    ],
)
def test_labels_of_all_kinds(tmp_path, column, classes, names, expected):
    source = read_parquet([write(tmp_path / "t.parquet", column)], COLUMNS, classes, none_label="no")
    assert (source.class_names, labels(source)) == (names, expected)


@pytest.mark.parametrize("as_struct", [False, True])
def test_images_of_many_row_groups(tmp_path, as_struct):
    images = [{"bytes": p, "path": None} for p in PICTURES] if as_struct else PICTURES
    paths = [write(tmp_path / folder / "t.parquet", ["cat"] * 6, images) for folder in "ab"]
    source = read_parquet(paths, COLUMNS)
    assert [row.image_id for row in source.rows][5:7] == ["a/t/5", "b/t/0"]
    assert source.clumps is not None
    assert source.clumps.tolist() == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2
    order = [5, 0, 11, 6, 1]
    with Contents([source.rows[k] for k in order]) as contents:
        assert [contents.read(source.rows[k]) for k in order] == [PICTURES[k % 6] for k in order]


def test_rows_of_a_row_group_share_a_shard(tmp_path):
    images = [PICTURES[0]] * 1000
    path = write(tmp_path / "t.parquet", ["cat"] * 1000, images, row_group_size=50)
    source = read_parquet([path], COLUMNS)
    shards = list(plan_shards(source.rows, 100, 0, source.clumps))
    numbers = [[(row.cell or ("", -1))[1] for row in shard] for shard in shards]
    assert sorted(sum(numbers, [])) == list(range(1000))  # noqa: RUF017
    assert all(len({number // 50 for number in shard}) == 2 for shard in numbers)
    assert numbers[0] != sorted(numbers[0])
    assert max(abs(a[0] // 50 - b[0] // 50) for a, b in pairwise(numbers)) > 5


def test_names_paths_and_what_is_missing(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(PICTURES[0])
    names = ["a.png", "https://host/b.png", "../c.png", None, "a.png", "a.png"]
    ids = [1, 2, 3, 4, 5, 5]
    path = write(tmp_path / "t.parquet", ["cat"] * 6, names, key=ids)
    columns = Columns(image="photo", label="what", id="key")
    a, web, outside, missing, _, again = read_parquet([path], columns, images=tmp_path / "photos").rows
    assert (a.image_id, a.path) == ("1", str(tmp_path / "photos/a.png"))
    assert web.path == "https://host/b.png"
    assert "leaves the folder" in (outside.error or "")
    assert missing.error == "the row has no path of an image"
    assert again.error == "'5' is the name of two images"


def test_cells_without_an_image_and_damaged_files(tmp_path):
    path = write(tmp_path / "t.parquet", ["cat"] * 6, [None, *PICTURES[1:]], row_group_size=1)
    rows = read_parquet([path], COLUMNS).rows
    with Contents(rows) as contents:
        assert contents.read(rows[1]) == PICTURES[1]
        with pytest.raises(ImageError, match=r"row 0 of t.parquet holds no image"):
            contents.read(rows[0])
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with Contents(rows) as contents, pytest.raises(ImageError, match=r"t.parquet can't be read"):
        contents.read(rows[0])


def test_what_does_not_fit_is_a_user_error_or_an_error_row(tmp_path):
    path = write(tmp_path / "t.parquet", [0, 1, 2, 7, 1, 1])
    with pytest.raises(UserError, match="no column 'image'; there are photo, what"):
        read_parquet([path], Columns())
    with pytest.raises(UserError, match="has no label"):
        read_parquet([path], Columns(image="photo", label=None))
    rows = read_parquet([path], COLUMNS, ["a", "b", "c"]).rows
    assert rows[3].error == "its label is 7; expected 0 to 2"
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_parquet([str(tmp_path)], COLUMNS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One data set as `datasets` saves it, alone and as a split, and as Parquet."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("saved")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["dog", "cat"]),
            "tags": datasets.List(datasets.ClassLabel(names=["dog", "cat", "cow"])),
        }
    )
    content = {
        "image": [{"bytes": p, "path": None} for p in PICTURES],
        "label": [1, 0, -1, None, 0, 1],
        "tags": [[2, 0], [], [1], [0], [0], [0]],
    }
    dataset = datasets.Dataset.from_dict(content, features=features)
    dataset.save_to_disk(str(root / "alone"))
    datasets.DatasetDict({"train": dataset, "test": dataset.select([5, 1])}).save_to_disk(
        str(root / "splits")
    )
    (root / "hub/data").mkdir(parents=True)
    dataset.to_parquet(str(root / "hub/data/train-00000-of-00001.parquet"))
    return root


@pytest.mark.parametrize("form", ["alone", "splits", "hub"])
def test_huggingface_data_sets(saved, form):
    source = read_huggingface(saved / form, Columns())
    assert (source.kind, source.class_names) == ("huggingface", ["dog", "cat"])
    assert labels(source) == [(1,), (0,), None, None, (0,), (1,)]
    with Contents(source.rows) as contents:
        assert [contents.read(row) for row in source.rows] == PICTURES
    several = read_huggingface(saved / form, Columns(label="tags"))
    assert several.class_names == ["dog", "cat", "cow"]
    assert labels(several) == [(0, 2), (), (1,), (0,), (0,), (0,)]


def test_numbers_mean_the_names_of_the_data_set(saved):
    source = read_huggingface(saved / "alone", Columns(), ["cat", "dog"])
    assert (source.class_names, labels(source)[:2]) == (["dog", "cat"], [(1,), (0,)])
    renamed = with_classes(source, ["cat", "dog"], saved / "classes.txt")
    assert (renamed.class_names, labels(renamed)[:2]) == (["cat", "dog"], [(0,), (1,)])


def test_a_split_that_was_selected_keeps_its_own_order(saved):
    source = read_huggingface(saved / "splits", Columns(), split="test")
    assert labels(source) == [(1,), (0,)]
    with Contents(source.rows) as contents:
        assert [contents.read(row) for row in source.rows] == [PICTURES[5], PICTURES[1]]
    with pytest.raises(UserError, match="no split 'val'; expected one of: test, train"):
        read_huggingface(saved / "splits", Columns(), split="val")
    with pytest.raises(UserError, match="no column 'photo'"):
        read_huggingface(saved / "alone", Columns(image="photo"))


def test_clumps_of_single_rows_are_plain_rows(saved):
    source = read_huggingface(saved / "alone", Columns())
    shards = list(plan_shards(source.rows, 4, 0, source.clumps))
    assert np.concatenate(
        [[(row.cell or ("", -1))[1] for row in shard] for shard in shards]
    ).tolist() != list(range(6))
