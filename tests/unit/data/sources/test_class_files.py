"""Classes from a file, for any source."""

from pathlib import Path

import pytest

from ray_wsss.data.schema import SourceRow
from ray_wsss.data.source import Source
from ray_wsss.data.sources.classes import read_class_names, with_classes
from ray_wsss.errors import UserError

FILE = Path("classes.txt")


def source(*labels) -> Source:
    rows = [SourceRow(image_id=str(k), path=f"{k}.jpg", image_labels=found) for k, found in enumerate(labels)]
    return Source(kind="voc", class_names=["cat", "cow", "dog"], rows=rows)


def test_names_are_lines(tmp_path):
    (tmp_path / "c").write_bytes("\ufeffdog\r\n\n wild cat \n".encode())
    assert read_class_names(tmp_path / "c") == ["dog", "wild cat"]
    (tmp_path / "c").write_text("dog\ndog\n")
    with pytest.raises(UserError, match="repeated class name"):
        read_class_names(tmp_path / "c")
    with pytest.raises(UserError, match="absent can't be read"):
        read_class_names(tmp_path / "absent")


def test_labels_masks_and_annotations_are_renumbered():
    given = source((0,), (0, 2), (), None)
    annotated = SourceRow(image_id="a", path="", image_labels=(2,), annotations=[{"class_index": 2, "id": 9}])
    given = Source(kind="coco", class_names=given.class_names, rows=[*given.rows, annotated])
    found = with_classes(given, ["dog", "bird", "cat"], FILE)
    assert found.class_names == ["dog", "bird", "cat"]
    assert [row.image_labels for row in found.rows] == [(2,), (0, 2), (), None, (0,)]
    assert found.rows[4].annotations == [{"class_index": 0, "id": 9}]
    assert found.mask_values == {0: 0, 255: 255, 1: 3, 3: 1}  # and no label for 2, the cow


def test_a_class_that_an_image_has_is_not_dropped():
    with pytest.raises(UserError, match=r"classes.txt lacks the class 'cow' of 1"):
        with_classes(source((0,), (1,)), ["cat", "dog"], FILE)
