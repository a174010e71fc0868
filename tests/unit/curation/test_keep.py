"""Labels keep masks that were made by hand; SAM sees only the other images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reworked import rewrite, rows_of

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.images import decode_mask, encode_mask
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.runs.curation.masks import open_hand_masks
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.stages.curation.keep import KeepMasks
from ray_wsss.stages.label import SamLabeller

KEPT = (1, 2, 4)


@pytest.fixture(scope="module")
def images(scene_dataset: Path) -> list[PreparedImage]:
    """Five images, of which the last can't be decoded."""
    prepare = PrepareImages(max_side_px=64, frame=InputFrame(IMAGE_SIZE_PX))
    five = prepare(plan_chunks(scene_dataset)[0])
    return [*five[:4], PreparedImage(image_id=five[4].image_id, error="truncated JPEG")]


def test_kept_masks_are_labels_and_cost_no_sam(
    scene_dataset: Path, images: list[PreparedImage], classifier_dir: Path, tmp_path: Path
) -> None:
    def correct(k: int, row: dict) -> dict | None:
        """1 and 4 get their truth, with ignored pixels; the mask of 2 has another size than its row says."""
        if k == 2:
            return row | {"mask": encode_mask(np.zeros((5, 6), np.uint8))}
        truth = decode_mask(row["mask"])
        truth[:2] = 255
        return row | {"mask": encode_mask(truth)} if k in KEPT else None

    corrected = rewrite(scene_dataset, tmp_path / "corrected", correct)
    config = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0,), max_side_px=64)
    arguments = {
        "config": config,
        "sam": SamConfig(name="tiny", precision="fp32"),
        "classifier": classifier_dir,
    }
    masks = open_hand_masks("--keep", corrected, scene_dataset)
    table, tally = KeepMasks(SamLabeller, masks, **arguments)(images)

    rows = table.to_pylist()
    assert [row["image_id"] for row in rows] == [image.image_id for image in images]
    assert [row["source"] for row in rows] == [None, "kept", "kept", None, None]
    expected = decode_mask(rows_of(scene_dataset)[1]["mask"])
    expected[:2] = 255
    np.testing.assert_array_equal(decode_mask(rows[1]["pseudo_label"]), expected)
    assert (rows[1]["segments"], rows[1]["height"], rows[1]["width"], rows[1]["error"]) == ([], 64, 64, None)
    assert rows[2]["error"] == "its kept mask is 6x5 pixels, the image 64x64"
    assert rows[2]["pseudo_label"] is None
    assert rows[4]["error"] == "truncated JPEG"

    alone, of_others = SamLabeller(**arguments)([images[0], images[3], images[4]])
    for row, other in zip((rows[0], rows[3]), alone.to_pylist()):
        assert row == other | {"source": None}
    assert (tally.masks, tally.prompts) == (of_others.masks, of_others.prompts)
    assert (tally.images, tally.errors) == (3, 2)


def test_all_or_none_may_be_kept(
    scene_dataset: Path, images: list[PreparedImage], classifier_dir: Path
) -> None:
    arguments = {
        "config": LabelConfig(scales=(1.0,)),
        "sam": SamConfig(name="tiny", precision="fp32"),
        "classifier": classifier_dir,
    }
    masks = open_hand_masks("--keep", scene_dataset, scene_dataset, tell=False)
    table, tally = KeepMasks(SamLabeller, masks, **arguments)(images[:4])
    assert table["source"].to_pylist() == ["kept"] * 4
    assert (tally.images, tally.masks) == (4, 0)
    none = KeepMasks(SamLabeller, replace(masks, rows={}), **arguments)
    assert none(images[3:4])[0]["source"].to_pylist() == [None]
