"""Which images of a data set are images of another, by id, name and content."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reworked import as_jpeg, rewrite, rows_of

from ray_wsss.data.images import decode_mask, encode_mask
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.runs.curation.masks import open_hand_masks, rows_with_masks
from ray_wsss.runs.curation.match import match_images


def renamed(dataset: Path, out: Path, names: list[str]) -> Path:
    return rewrite(dataset, out, lambda k, row: row | {"image_id": names[k]})


@pytest.fixture
def ours(scene_dataset: Path, tmp_path: Path) -> Path:
    """The scenes, in folders."""
    return renamed(scene_dataset, tmp_path / "ours", [f"cat {k % 2}/{k}.jpg" for k in range(14)])


def test_by_id_then_name_then_content(ours: Path, tmp_path: Path) -> None:
    ids = [row["image_id"] for row in rows_of(ours)]

    def through_tools(k: int, row: dict) -> dict | None:
        """0 stays; 1 to 3 come back from VOC, as JPEG; 4 to 6 from COCO, with numbers; the rest is lost."""
        if 1 <= k <= 3:
            return row | {"image_id": f"cat_{k % 2}_{k}", "image": as_jpeg(row)}
        return row | {"image_id": str(k)} if 4 <= k <= 6 else row if k == 0 else None

    theirs = rewrite(ours, tmp_path / "theirs", through_tools)
    found = match_images(ours, theirs)
    assert found.rows == {image_id: row for row, image_id in enumerate(ids[:7])}
    assert found.ways == {"id": 1, "file name": 3, "content": 3}
    assert found.unmatched == found.repeated == []


def test_an_id_of_another_picture_counts_for_nothing(ours: Path, tmp_path: Path) -> None:
    """Numbers that other images have too: the content decides."""
    turned = renamed(ours, tmp_path / "turned", [f"{13 - k}" for k in range(14)])
    numbered = renamed(ours, tmp_path / "numbered", [f"{k}.png" for k in range(14)])
    found = match_images(numbered, turned)
    assert found.rows == {f"{k}.png": k for k in range(14)}
    assert found.ways["content"] == 14
    smaller = rewrite(ours, tmp_path / "smaller", lambda k, row: row | {"height": 63})
    assert match_images(ours, smaller).rows == {}


def test_what_is_left_is_listed(ours: Path, tmp_path: Path) -> None:
    rows = rows_of(ours)
    foreign = {"image": b"of another data set", "perceptual_hash": ~rows[0]["perceptual_hash"]}

    def change(k: int, row: dict) -> dict | None:
        if k == 1:  # the same file a second time
            return rows[0] | {"image_id": "copy"}
        return row | foreign | {"image_id": "foreign"} if k == 2 else row if k in (0, 3) else None

    theirs = rewrite(ours, tmp_path / "theirs", change)
    found = match_images(ours, theirs)
    assert list(found.rows.values()) == [0, 3]
    assert (found.unmatched, found.repeated) == (["foreign"], ["copy"])
    told = " | ".join(found.describe(ours, theirs))
    assert "2 images of" in told
    assert "1 images (foreign)" in told
    assert "1 images (copy)" in told


def test_masks_take_our_classes_by_name(ours: Path, tmp_path: Path) -> None:
    names = DatasetMetadata.load(ours).class_names
    order = [2, 0, 1]  # three of the classes, in another order
    stored = np.full(256, 0, np.uint8)
    stored[[1 + c for c in order]], stored[255] = range(1, 4), 255

    def change(k: int, row: dict) -> dict:
        mask = decode_mask(row["mask"])
        mask[:3] = 255
        return row | {"mask": encode_mask(stored[mask]) if k else None}

    theirs = rewrite(ours, tmp_path / "theirs", change, tuple(names[c] for c in order))
    masks = open_hand_masks("--corrections", theirs, ours)
    assert rows_with_masks(theirs) == list(range(1, 14))
    assert len(masks) == 13
    for k, row in enumerate(rows_of(ours)):
        assert (row["image_id"] in masks) == (k > 0)
        if k:
            expected = decode_mask(row["mask"])
            expected[expected > 3] = 0
            expected[:3] = 255
            np.testing.assert_array_equal(masks.read(row["image_id"]), expected)


def test_what_can_not_replace_labels_is_refused(ours: Path, tmp_path: Path) -> None:
    names = DatasetMetadata.load(ours).class_names
    other = rewrite(ours, tmp_path / "other", lambda k, row: row, (*names[:-2], "zebra", "okapi"))
    with pytest.raises(
        UserError, match=r"--keep .*other has classes that .*ours lacks: zebra, okapi; expected"
    ):
        open_hand_masks("--keep", other, ours)
    empty = rewrite(ours, tmp_path / "empty", lambda k, row: row | {"mask": None})
    with pytest.raises(UserError, match=r"--keep .*empty has no masks"):
        open_hand_masks("--keep", empty, ours)
    foreign = rewrite(
        ours, tmp_path / "foreign", lambda k, row: row | {"image_id": f"x{k}", "image": b"%d" % k}
    )
    with pytest.raises(UserError, match="a mask for none of the images"):
        open_hand_masks("--keep", foreign, ours)


def test_a_mask_with_a_label_beyond_its_classes_is_the_fault_of_its_image(ours: Path, tmp_path: Path) -> None:
    names = DatasetMetadata.load(ours).class_names
    theirs = rewrite(
        ours, tmp_path / "theirs", lambda k, row: row | {"mask": encode_mask(np.full((64, 64), 9, np.uint8))}
    )
    replace(DatasetMetadata.load(theirs), class_names=names[:2]).save(theirs)
    masks = open_hand_masks("--keep", theirs, ours)
    with pytest.raises(ValueError, match="label 9; expected 0 to 2"):
        masks.read(rows_of(ours)[0]["image_id"])
