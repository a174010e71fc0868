"""Ground-truth masks from a folder."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import SourceRow
from ray_wsss.data.source import Source
from ray_wsss.data.sources.masks import read_mask_values, with_masks
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import IngestShard

CLASSES = ["cat", "wild dog"]


def rows_of(*names: str) -> Source:
    rows = [SourceRow(image_id=name, path=f"/photos/{name}") for name in names]
    return Source(kind="folder", class_names=CLASSES, rows=rows)


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_masks_are_found_by_name(tmp_path):
    touch(
        tmp_path,
        "cat/a.png",
        "b.jpg.png",
        "deep/er/c.png",
        "two/d.PNG",
        "d.png",
        "lost.png",
        ".e.png",
        "x.txt",
    )
    names = ("cat/a.jpg", "b.jpg", "cat/c.jpeg", "cat/d.jpg", "dog/a.jpg", "e.jpg")
    found = with_masks(rows_of(*names), tmp_path)
    paths = [row.mask_path and row.mask_path.removeprefix(f"{tmp_path}/") for row in found.rows]
    # Two masks are named d, and the a of dog/ is not that of cat/.
    assert paths == ["cat/a.png", "b.jpg.png", "deep/er/c.png", None, None, None]
    assert found.remarks[0].startswith("3 of 6 images have a mask")
    assert "3 masks" in found.remarks[1]
    assert "d.png" in found.remarks[1]


def test_masks_of_uris_and_of_images_in_containers(tmp_path):
    touch(tmp_path, "a.png", "shard/0001.png")
    web = SourceRow(image_id="https://host/p/a.jpg?w=3", path="https://host/p/a.jpg?w=3")
    packed = SourceRow(image_id="shard/0001", path="/tars/a.tar", byte_range=(0, 9))
    found = with_masks(Source(kind="csv", class_names=CLASSES, rows=[web, packed]), tmp_path)
    assert [row.mask_path for row in found.rows] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "shard/0001.png"),
    ]


def test_a_folder_without_a_fitting_mask_is_refused(tmp_path):
    touch(tmp_path, "z.png")
    with pytest.raises(UserError, match=r"no image has a mask in .*, such as z.png"):
        with_masks(rows_of("a.jpg"), tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        with_masks(rows_of("a.jpg"), tmp_path / "absent")


def test_values_from_words_and_from_a_file(tmp_path):
    expected = {0: 0, 255: 255, 7: 1, 9: 2, 3: 255}
    assert read_mask_values(["7=cat", "9=wild dog", "3=ignore"], CLASSES) == expected
    (tmp_path / "values.txt").write_text("7 cat\n9: wild dog\n\n3=ignore\n")
    assert read_mask_values([str(tmp_path / "values.txt")], CLASSES) == expected
    assert read_mask_values(["255=cat", "0=ignore"], CLASSES) == {255: 1, 0: 255}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat=7", "1=cat"], "has 'cat=7'; expected VALUE=CLASS"),
        (["7=cta"], "of which 'cta' is no class; did you mean cat"),
        (["7=cat", "7=wild dog"], "the value 7 twice"),
        (["absent.txt"], "absent.txt can't be read"),
    ],
)
def test_malformed_values_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        read_mask_values(words, CLASSES)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_stored_as_labels_and_tell_unknown_labels(tmp_path, mode):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    mask = np.array([[0, 7, 7, 3], [0, 0, 255, 3]], np.uint8)
    picture = Image.fromarray(mask)
    if mode == "P":
        picture.putpalette(np.arange(768).astype(np.uint8).tobytes())
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks/a.png")
    row = SourceRow(image_id="a.png", path=str(tmp_path / "a.png"), mask_path=str(tmp_path / "masks/a.png"))

    values = read_mask_values(["7=wild dog", "3=ignore"], CLASSES)
    summary = IngestShard(tmp_path / "out", 2, mask_values=values)([row], 0)
    assert (summary.errors, summary.with_mask) == ([], 1)
    stored = ShardReader(tmp_path / "out").read(0)
    expected = np.where(mask == 7, 2, np.where(mask == 3, 255, mask))
    np.testing.assert_array_equal(np.array(Image.open(BytesIO(stored["mask"]))), expected)
    assert stored["image_labels"] == [1]

    summary = IngestShard(tmp_path / "other", 2, mask_values=read_mask_values(["3=ignore"], CLASSES))(
        [row], 0
    )
    assert "holds the value 7, which is no class" in summary.errors[0][2]


def test_values_of_many_classes(tmp_path):
    """Values of 8 bits are mapped, 255 too; the stored mask has 16."""
    names = [f"class {k}" for k in range(300)]
    values = read_mask_values(["7=class 299", "255=ignore"], names)
    assert values == {0: 0, 7: 300, 255: 65_535, 65_535: 65_535}
    ingest, png = IngestShard(tmp_path, 300, mask_values=values), tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(png)
    stored, label_map = ingest._read_mask(str(png))
    assert label_map.tolist() == [[0, 300, 65_535]]
    assert decode_mask(stored, 300).tolist() == label_map.tolist()
    # Values of 16 bits may stand for few classes.
    few = IngestShard(tmp_path, 2, mask_values=read_mask_values(["1000=b"], ["a", "b"]))
    Image.fromarray(np.array([[0, 1000, 255]], np.uint16)).save(png)
    assert few._read_mask(str(png))[1].tolist() == [[0, 2, 255]]
