"""Generated scenes: repeatable, nested, disjoint, and the same again by way of COCO files."""

import json
from pathlib import Path

import numpy as np
import pytest

from ray_wsss.data.coco import encode_rle, rasterise, read_coco
from ray_wsss.data.images import decode_image
from ray_wsss.data.scene_coco import write_scene_coco
from ray_wsss.data.scenes import CLASS_NAMES, EMBLEM_RGB, make_scene

SEEDS = [*range(40), 226, 263, 287]  # in the last three, one object covers a part of another


def test_a_scene_depends_on_its_seed_alone():
    for seed in range(4):
        first, again = make_scene(seed), make_scene(seed)
        np.testing.assert_array_equal(first.image, again.image)
        assert [o.class_index for o in first.objects] == [o.class_index for o in again.objects]
        for one, other in zip(first.objects, again.objects):
            np.testing.assert_array_equal(one.body, other.body)
    assert not np.array_equal(make_scene(0).image, make_scene(1).image)


def test_masks_are_nested_and_objects_disjoint():
    classes = set()
    for seed in SEEDS:
        scene = make_scene(seed, 96, 96)
        assert scene.image.shape == (96, 96, 3)
        assert 1 <= len(scene.objects) <= 3
        for thing in scene.objects:
            classes.add(thing.class_index)
            assert not (thing.emblem & ~thing.plate).any()
            assert not (thing.plate & ~thing.body).any()
            if thing.emblem.any():
                assert thing.emblem.sum() < thing.plate.sum() < thing.body.sum()
        assert np.sum([thing.body for thing in scene.objects], axis=0).max() == 1
    assert classes == set(range(len(CLASS_NAMES)))


def test_the_emblem_shows_the_class():
    """Its mean colour is nearer to its class's than to any other's."""
    for seed in SEEDS:
        scene = make_scene(seed)
        for thing in scene.objects:
            if thing.emblem.sum() > 20:
                seen = scene.image[thing.emblem].mean(0)
                nearest = np.linalg.norm(np.array(EMBLEM_RGB) - seen, axis=1).argmin()
                assert nearest == thing.class_index


def test_too_small_a_scene_is_refused():
    with pytest.raises(ValueError, match="40 x 96 px is too small"):
        make_scene(0, 40, 96)


def test_coco_round_trip(tmp_path):
    images, annotations = write_scene_coco(tmp_path, "train", range(6), size_px=64)
    source = read_coco(images, annotations)
    class_names, rows = source.class_names, source.rows
    assert class_names == list(CLASS_NAMES)
    assert len(rows) == 6
    for seed, row in enumerate(rows):
        scene = make_scene(seed, 64, 64)
        expected = np.zeros((64, 64), np.uint8)
        visible = [thing for thing in scene.objects if thing.emblem.any()]
        for thing in visible:
            expected[thing.body] = thing.class_index + 1
        assert row.annotations is not None
        np.testing.assert_array_equal(_label_map(row.annotations), expected)
        assert row.image_labels == tuple(sorted({thing.class_index for thing in visible}))
        seen = decode_image(Path(row.path).read_bytes()).astype(int)
        assert np.abs(seen - scene.image).mean() < 4
    boxes = [a["bbox"] for a in json.loads(annotations.read_text())["annotations"]]
    assert all(w > 0 and h > 0 for _, _, w, h in boxes)


def _label_map(annotations) -> np.ndarray:
    return rasterise(annotations, 64, 64)


def test_rle_of_a_mask_is_json():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    rle = json.loads(json.dumps(encode_rle(mask)))
    annotation = {"segmentation": rle, "iscrowd": False, "id": 1, "class_index": 0}
    np.testing.assert_array_equal(rasterise([annotation], 5, 7) == 1, mask)
