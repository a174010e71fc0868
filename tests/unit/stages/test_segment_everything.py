"""Segment maps: painted from SamAutomaticMaskGenerator's masks, as SAM's own tools would have it."""

import numpy as np
import pytest
from segment_anything import SamAutomaticMaskGenerator

from ray_wsss.config import SamConfig, SegmentsConfig
from ray_wsss.data.images import decode_segments
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.stages.segment_everything import SEGMENTS_SCHEMA, SegmentEverything

SAM = SamConfig(name="tiny", precision="fp32", encode_batch_size=2)
SETTINGS = {"points_per_side": 8, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.8}
SIZES = [(64, 64), (64, 96), (90, 70)]


def prepared(image_id: str, pixels: np.ndarray, resize) -> PreparedImage:
    image_hw = (pixels.shape[0], pixels.shape[1])
    return PreparedImage(image_id=image_id, image_hw=image_hw, sam_pixels=resize.apply_image(pixels))


@pytest.fixture(scope="module")
def generator(tiny_sam) -> SamAutomaticMaskGenerator:
    return SamAutomaticMaskGenerator(tiny_sam, **SETTINGS)


@pytest.fixture(scope="module")
def resize(generator):
    assert generator.predictor.transform.target_length == IMAGE_SIZE_PX
    return generator.predictor.transform


def painted(records: list[dict], image_hw: tuple[int, int], overlap: str) -> np.ndarray:
    """0-based index of the record that each pixel belongs to, -1 where there is none."""
    owner = np.full(image_hw, -1)
    keys = [r["area"] if overlap == "smallest_area" else -r["predicted_iou"] for r in records]
    for at in sorted(range(len(records)), key=lambda k: (-keys[k], -k)):
        owner[records[at]["segmentation"]] = at
    return owner


@pytest.mark.parametrize("overlap", ["smallest_area", "highest_iou"])
def test_maps_are_painted_from_the_generators_masks(generator, resize, overlap):
    scenes = [make_scene(seed, *hw).image for seed, hw in enumerate(SIZES)]
    stage = SegmentEverything(SegmentsConfig(**SETTINGS, overlap=overlap), SAM)
    images = [prepared(str(k), scene, resize) for k, scene in enumerate(scenes)]
    table, tally = stage([images[0], PreparedImage(image_id="bad", error="cut"), *images[1:]])
    assert table.schema.equals(SEGMENTS_SCHEMA)
    rows = table.to_pylist()
    assert [row["image_id"] for row in rows] == ["0", "bad", "1", "2"]
    assert (rows[1]["error"], rows[1]["segment_map"]) == ("cut", None)
    assert (tally.images, tally.errors, tally.prompts) == (3, 1, 3 * 64)
    count = 0
    for scene, row in zip(scenes, [rows[0], *rows[2:]]):
        records = generator.generate(scene)
        owner = painted(records, scene.shape[:2], overlap)
        segments = decode_segments(row["segment_map"])
        np.testing.assert_array_equal(segments > 0, owner >= 0)
        visible = np.unique(owner[owner >= 0])
        assert len(row["segments"]) == len(visible) == segments.max()
        for number, (segment, at) in enumerate(zip(row["segments"], visible), start=1):
            record = records[at]
            np.testing.assert_array_equal(segments == number, owner == at)
            assert segment["area"] == (segments == number).sum()
            assert segment["point_xy"] == record["point_coords"][0]
            assert segment["predicted_iou"] == pytest.approx(record["predicted_iou"], abs=1e-5)
            assert segment["stability_score"] == pytest.approx(record["stability_score"], abs=1e-4)
        count += len(visible)
    assert count > len(scenes)
    assert tally.masks >= count


def test_a_large_image_is_segmented_smaller_and_scaled_back(generator, resize):
    """An image twice as large whose input to SAM is the same has twice the map."""
    scene = make_scene(5, 60, 80).image
    large = PreparedImage(image_id="large", image_hw=(120, 160), sam_pixels=resize.apply_image(scene))
    stage = SegmentEverything(SegmentsConfig(**SETTINGS, max_side_px=80), SAM)
    (row,) = stage([large])[0].to_pylist()
    records = generator.generate(scene)
    owner = painted(records, (60, 80), "smallest_area")
    visible = np.unique(owner[owner >= 0])
    assert len(visible) > 1
    expected = np.searchsorted(visible, owner) + (owner >= 0)
    segments = decode_segments(row["segment_map"])
    assert segments.shape == (row["height"], row["width"]) == (120, 160)
    np.testing.assert_array_equal(segments, expected.repeat(2, axis=0).repeat(2, axis=1))
    assert [s["area"] for s in row["segments"]] == np.bincount(segments.ravel())[1:].tolist()
    points = [np.multiply(records[at]["point_coords"][0], 2).tolist() for at in visible]
    assert [s["point_xy"] for s in row["segments"]] == points


def test_images_of_odd_sizes_keep_them(resize):
    sizes = [(131, 97), (49, 200)]
    stage = SegmentEverything(SegmentsConfig(**SETTINGS, max_side_px=64), SAM)
    images = [prepared(str(hw), make_scene(8, *hw).image, resize) for hw in sizes]
    for row, image_hw in zip(stage(images)[0].to_pylist(), sizes, strict=True):
        segments = decode_segments(row["segment_map"])
        assert segments.shape == image_hw
        areas = np.bincount(segments.ravel(), minlength=len(row["segments"]) + 1)
        assert [s["area"] for s in row["segments"]] == areas[1:].tolist()
        points = np.array([s["point_xy"] for s in row["segments"]])
        on_grid = points / image_hw[::-1] * SETTINGS["points_per_side"] - 0.5
        np.testing.assert_allclose(on_grid, on_grid.round(), atol=1e-5)
        assert ((on_grid > -0.5) & (on_grid < SETTINGS["points_per_side"] - 0.5)).all()


def test_a_chunk_of_broken_rows_only():
    stage = SegmentEverything(SegmentsConfig(**SETTINGS), SAM)
    table, tally = stage([PreparedImage(image_id=name, error="cut") for name in "ab"])
    assert table["error"].to_pylist() == ["cut", "cut"]
    assert (tally.images, tally.errors, tally.masks) == (0, 2, 0)


def test_nothing_found_is_an_empty_map(resize):
    stage = SegmentEverything(SegmentsConfig(points_per_side=2, stability_score_thresh=1.0), SAM)
    (row,) = stage([prepared("x", make_scene(0, 64, 64).image, resize)])[0].to_pylist()
    assert row["error"] is None
    assert row["segments"] == []
    assert not decode_segments(row["segment_map"]).any()
