"""Labelling tables of images: good rows don't notice broken ones, nor their neighbours' sizes."""

import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from segment_anything.utils.amg import calculate_stability_score

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.images import decode_mask
from ray_wsss.data.scenes import make_scene
from ray_wsss.data.schema import IMAGE_SCHEMA, write_table_atomically
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.ops.pseudo_label import stability_score
from ray_wsss.ops.resize import shrink, to_tensor
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.stages.cams import find_cams
from ray_wsss.stages.label import LABEL_SCHEMA, SamLabeller
from ray_wsss.stages.point_prompts import find_prompts

CONFIG = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0,), max_side_px=100)
LARGE_HW = (150, 200)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def row(image_id: str, image: bytes, image_labels: list[int], orientation: int = 1) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "image": image,
        "orientation": orientation,
        "height": 1,
        "width": 1,
        "image_labels": image_labels,
        "mask": None,
    }


def scene(seed: int, height: int, width: int) -> bytes:
    return encoded(make_scene(seed, height, width).image)


GOOD = [
    row("square", scene(0, 64, 64), [0, 3]),
    row("wide", scene(1, 64, 96), [1, 2, 5]),
    row("no classes", scene(2, 64, 64), []),
    row("square too", scene(3, 64, 64), [4]),
    row("large", scene(4, *LARGE_HW), [0, 1]),
    row("turned", scene(5, 64, 80), [2], orientation=6),
]
BROKEN = {
    "truncated": (row("truncated", encoded(make_scene(6).image, "JPEG")[:900], [0]), "truncated JPEG"),
    "text": (row("text", b"hello", [0]), "not an image"),
    "class": (row("class", scene(7, 64, 64), [99]), "image label is 99; expected 0 to 5"),
    "negative": (row("negative", scene(7, 64, 64), [-1]), "image label is -1"),
}


@pytest.fixture(scope="module")
def labeller(classifier_dir) -> SamLabeller:
    return SamLabeller(CONFIG, SamConfig(name="tiny", precision="fp32"), classifier_dir)


def label(labeller: SamLabeller, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    prepare = PrepareImages(max_side_px=CONFIG.max_side_px, frame=InputFrame(IMAGE_SIZE_PX))
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "shards" / "part-00000.parquet"
        write_table_atomically(pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA), shard)
        (chunk,) = plan_chunks(Path(folder))
        table, tally = labeller(prepare(chunk))
    assert table.schema.equals(LABEL_SCHEMA)
    results = table.to_pylist()
    assert tally.errors == sum(result["error"] is not None for result in results)
    assert tally.images == len(rows) - tally.errors
    segments = [segment for result in results for segment in result["segments"] or []]
    assert tally.masks == len(segments)
    assert tally.prompts == sum(len(segment["points_xy"]) for segment in segments)
    return results


@pytest.fixture(scope="module")
def mixed(labeller) -> list[dict[str, Any]]:
    broken = [entry for entry, _ in BROKEN.values()]
    return label(labeller, [broken[0], *GOOD[:3], broken[1], broken[2], *GOOD[3:], broken[3]])


@pytest.fixture(scope="module")
def good(mixed) -> list[dict[str, Any]]:
    by_id = {result["image_id"]: result for result in mixed}
    return [by_id[entry["image_id"]] for entry in GOOD]


def test_rows_stay_in_order(mixed):
    assert [result["image_id"] for result in mixed] == [
        *["truncated", "square", "wide", "no classes", "text", "class"],
        *["square too", "large", "turned", "negative"],
    ]


def test_broken_rows_carry_their_reason(mixed):
    for result in mixed:
        if result["image_id"] in BROKEN:
            assert BROKEN[result["image_id"]][1] in result["error"]
            assert (result["pseudo_label"], result["segments"], result["height"]) == (None, None, None)
        else:
            assert result["error"] is None


def test_a_table_of_broken_rows_only(labeller):
    results = label(labeller, [entry for entry, _ in BROKEN.values()])
    assert all(result["error"] for result in results)


@pytest.mark.parametrize("at", range(len(GOOD)), ids=[entry["image_id"] for entry in GOOD])
def test_good_rows_equal_those_labelled_alone(labeller, good, at):
    (alone,) = label(labeller, [GOOD[at]])
    together = good[at]
    assert (together["height"], together["width"]) == (alone["height"], alone["width"])
    assert (decode_mask(together["pseudo_label"]) != decode_mask(alone["pseudo_label"])).mean() < 1e-3
    assert len(together["segments"]) == len(alone["segments"]) == len(GOOD[at]["image_labels"])
    for one, other in zip(together["segments"], alone["segments"]):
        assert (one["class_index"], one["points_xy"]) == (other["class_index"], other["points_xy"])
        assert one["sam_score"] == pytest.approx(other["sam_score"], abs=1e-4)
        assert one["cam_mean"] == pytest.approx(other["cam_mean"], abs=1e-3)


def test_labels_have_the_size_of_the_image(good):
    sizes = [(64, 64), (64, 96), (64, 64), (64, 64), LARGE_HW, (80, 64)]
    for result, size_hw in zip(good, sizes):
        assert (result["height"], result["width"]) == size_hw
        assert decode_mask(result["pseudo_label"]).shape == size_hw


def test_segments_are_consistent(good):
    for entry, result in zip(GOOD, good):
        size = [result["height"], result["width"]]
        pseudo_label = decode_mask(result["pseudo_label"])
        covered = np.zeros(size, bool)
        for segment, class_index in zip(result["segments"], entry["image_labels"]):
            assert segment["class_index"] == class_index
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pycocotools under NumPy 2
                mask = coco_mask.decode({"size": size, "counts": segment["rle"]}).astype(bool)
            assert mask.sum() == segment["area"]
            assert mask[pseudo_label == class_index + 1].all()
            assert 0 <= segment["cam_mean"] <= 1
            assert 0 < segment["stability_score"] <= 1
            covered |= mask
            points = np.array(segment["points_xy"])
            assert len(points) >= 1
            assert ((points > 0) & (points < [size[1], size[0]])).all()
        # Masks compete, but what any of them covers is not background.
        np.testing.assert_array_equal(pseudo_label > 0, covered)
    assert not decode_mask(good[2]["pseudo_label"]).any()


def test_points_are_the_centres_of_the_prompts_pixels(labeller, good):
    image_labels = torch.zeros(1, 6)
    image_labels[0, GOOD[1]["image_labels"]] = 1
    batch = to_tensor([make_scene(1, 64, 96).image], torch.device("cpu"))
    cams = find_cams(labeller.model, batch, image_labels, scales=CONFIG.scales, flip=CONFIG.flip)
    expected = [(points.flip(-1) + 0.5).tolist() for points in find_prompts(cams, CONFIG, guess=True)]
    assert [segment["points_xy"] for segment in good[1]["segments"]] == expected


def test_large_images_are_worked_on_at_max_side_px(labeller, good):
    large = good[4]
    pixels = shrink(make_scene(4, *LARGE_HW).image, 100)
    assert pixels.shape == (75, 100, 3)
    (small,) = label(labeller, [row("small", encoded(pixels), [0, 1])])
    for one, other in zip(large["segments"], small["segments"]):
        np.testing.assert_allclose(np.array(one["points_xy"]), 2 * np.array(other["points_xy"]))
        # SAM's input is made from the image itself, not from the copy that the classifier sees.
        assert one["area"] == pytest.approx(4 * other["area"], rel=0.1)
    label_map = decode_mask(large["pseudo_label"])
    quarter = label_map[::2, ::2]
    np.testing.assert_array_equal(label_map, quarter.repeat(2, axis=0).repeat(2, axis=1))
    assert (quarter != decode_mask(small["pseudo_label"])).mean() < 0.05


def test_the_host_does_not_wait_for_each_mask(classifier_dir, monkeypatch):
    """As often with five classes in an image as with one: on a GPU each of these would be a wait."""
    config = replace(CONFIG, tau=1.0, keep_global_max="always")  # a point for every class
    labeller = SamLabeller(config, SamConfig(name="tiny", precision="fp32"), classifier_dir)
    calls: list[str] = []

    def watch(name: str) -> None:
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs)
        )

    for name in ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__"):
        watch(name)
    counts, masks = [], []
    for image_labels in ([0], [0, 1, 2, 3, 4]):
        calls.clear()
        images = [make_scene(seed, 64, 64).image for seed in range(3)]
        results = label(labeller, [row(str(k), encoded(x), image_labels) for k, x in enumerate(images)])
        masks.append(sum(len(result["segments"]) for result in results))
        counts.append(len(calls))
    assert masks == [3, 15]
    assert counts[0] == counts[1]


def test_shrink_leaves_small_images_alone():
    pixels = np.zeros((20, 100, 3), np.uint8)
    assert shrink(pixels, 100) is pixels
    assert shrink(pixels, 50).shape == (10, 50, 3)
    assert shrink(np.zeros((1, 1000, 3), np.uint8), 32).shape == (1, 32, 3)


def test_stability_is_that_of_segment_anything(labeller, good, monkeypatch):
    seen = []

    def watch(logits):
        seen.append(logits)
        return stability_score(logits)

    monkeypatch.setattr("ray_wsss.stages.contest.stability_score", watch)
    (result,) = label(labeller, [GOOD[1]])
    expected = calculate_stability_score(seen[0], 0.0, 1.0)
    assert [s["stability_score"] for s in result["segments"]] == pytest.approx(expected.tolist())
