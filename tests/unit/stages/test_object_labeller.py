"""Labels from boxes and points: SAM's masks one by one, and what becomes of overlaps and of gaps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from segment_anything import SamPredictor

from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.coco import decode_rle, read_coco
from ray_wsss.data.csv_labels import read_csv
from ray_wsss.data.images import decode_mask
from ray_wsss.data.objects import AnnotatedObject
from ray_wsss.data.scene_coco import write_scene_coco
from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.ops.prompt_batches import batch_by_shape
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages, pack_images, unpack_images
from ray_wsss.stages.ingest import ingest_here
from ray_wsss.stages.label import LABEL_SCHEMA, SamLabeller, score_of
from ray_wsss.stages.objects.label import MixedLabeller, ObjectLabeller

SAM = SamConfig(name="tiny", precision="fp32", decode_batch_size=4)
CONFIG = LabelConfig(scales=(1.0,), batch_size=3)
SIZES_HW = [(64, 64), (64, 96), (64, 64), (150, 200)]
PREPARE = PrepareImages(frame=InputFrame(IMAGE_SIZE_PX))
OBJECTS = {
    0: (
        AnnotatedObject(class_index=0, box_xyxy=(5.5, 7, 40, 50)),
        AnnotatedObject(class_index=3, points_xy=((20.25, 30),), point_labels=(1,)),
        AnnotatedObject(class_index=0, box_xyxy=(1, 1, 60, 62.5), points_xy=((9, 8),), point_labels=(0,)),
    ),
    1: (
        AnnotatedObject(class_index=1, points_xy=((50, 30), (60, 31)), point_labels=(1, 0)),
        AnnotatedObject(class_index=5, box_xyxy=(30, 10, 90, 60)),
    ),
    3: (
        AnnotatedObject(class_index=2, box_xyxy=(20, 30, 120, 140), points_xy=((70, 80),), point_labels=(1,)),
    ),
}


def scene(k: int) -> np.ndarray:
    return make_scene(k, *SIZES_HW[k]).image


def image(k: int, objects: Any = None, labels: tuple[int, ...] | None = None) -> PreparedImage:
    objects = OBJECTS.get(k) if objects is None else objects
    if labels is None:
        labels = tuple(sorted({each.class_index for each in objects or ()}))
    return replace(PREPARE.prepare(f"{k}", scene(k), labels), objects=objects)


@pytest.fixture(scope="module")
def labeller() -> ObjectLabeller:
    return ObjectLabeller(CONFIG, SAM, 6)


def label(stage: Any, images: list[PreparedImage]) -> list[dict[str, Any]]:
    table, tally = stage(unpack_images(pack_images(images)))
    assert table.schema.equals(LABEL_SCHEMA)
    rows = table.to_pylist()
    assert (tally.images + tally.errors, tally.masks) == (
        len(rows),
        sum(len(r["segments"] or ()) for r in rows),
    )
    return rows


def rles(row: dict[str, Any]) -> list[str]:
    """The masks; scores differ by rounding where an image is encoded among others."""
    return [segment["rle"] for segment in row["segments"]]


def predicted(sam: Any, k: int, segment: dict[str, Any], which: int | None) -> tuple[np.ndarray, float]:
    """SAM's own mask for the prompt that a segment says was used, and its predicted IoU.

    Args:
        which: multimask output; None: the single mask.
    """
    predictor = SamPredictor(sam)
    predictor.set_image(scene(k))
    points, box = segment["points_xy"], segment["box_xyxy"]
    masks, iou, _ = predictor.predict(
        np.array(points) if points else None,
        np.array(segment["point_labels"]) if points else None,
        np.array(box) if box is not None else None,
        multimask_output=which is not None,
    )
    at = 0 if which is None else int(iou.argmax()) if which < 0 else which
    return np.asarray(masks[at]), float(iou[at])


@pytest.fixture(scope="module")
def rows(labeller) -> list[dict[str, Any]]:
    return label(labeller, [image(k) for k in (0, 1, 3)])


def test_masks_equal_those_of_sam_predictor(rows, tiny_sam):
    for k, row in zip((0, 1, 3), rows):
        assert [segment["object_index"] for segment in row["segments"]] == list(range(len(OBJECTS[k])))
        for segment, each in zip(row["segments"], OBJECTS[k]):
            assert segment["class_index"] == each.class_index
            assert segment["box_xyxy"] == (list(each.box_xyxy) if each.box_xyxy else None)
            assert segment["points_xy"] == [list(point) for point in each.points_xy]
            lone = each.box_xyxy is None and len(each.points_xy) == 1
            mask, iou = predicted(tiny_sam, k, segment, -1 if lone else None)
            found = decode_rle(segment["rle"], SIZES_HW[k])
            assert (found != mask).sum() <= 1  # logits differ by rounding
            assert segment["sam_score"] == pytest.approx(iou, abs=1e-4)
            assert segment["area"] == found.sum()
            assert (segment["cam_mean"], score_of(segment)) == (None, min(1, segment["sam_score"]))
            assert 0 < segment["stability_score"] <= 1


@pytest.mark.parametrize(("mask_output", "which"), [("single", None), ("best_iou", -1), ("whole", 2)])
def test_the_mask_may_be_chosen(tiny_sam, mask_output, which):
    labeller = ObjectLabeller(replace(CONFIG, object_mask=mask_output), SAM, 6)
    (row,) = label(labeller, [image(0)])
    for segment in row["segments"]:
        mask, _ = predicted(tiny_sam, 0, segment, which)
        assert (decode_rle(segment["rle"], SIZES_HW[0]) != mask).sum() <= 1


@pytest.mark.parametrize(
    ("kind", "used"),
    [
        ("all", [(1, 0), (0, 1), (1, 1)]),
        ("boxes", [(1, 0), (0, 1), (1, 0)]),
        ("points", [(1, 0), (0, 1), (1, 0)]),
    ],
)
def test_prompts_may_be_chosen(kind, used):
    """An object whose only point lies beside it keeps its box."""
    labeller = ObjectLabeller(replace(CONFIG, object_prompts=kind), SAM, 6)
    first, last = label(labeller, [image(0), image(3)])
    found = [(int(s["box_xyxy"] is not None), len(s["points_xy"])) for s in first["segments"]]
    assert found == used
    expected = {"all": (1, 1), "boxes": (1, 0), "points": (0, 1)}[kind]
    (segment,) = last["segments"]
    assert (int(segment["box_xyxy"] is not None), len(segment["points_xy"])) == expected


def test_overlaps_go_to_the_better_score(rows):
    for k, row in zip((0, 1, 3), rows):
        expected = np.zeros(SIZES_HW[k], np.uint8)
        for segment in sorted(row["segments"], key=lambda s: s["sam_score"]):
            expected[decode_rle(segment["rle"], SIZES_HW[k])] = segment["class_index"] + 1
        np.testing.assert_array_equal(decode_mask(row["pseudo_label"]), expected)


def test_memory_of_maps_is_bounded(labeller, rows, monkeypatch):
    """A mask at a time gives the same labels."""
    tight = ObjectLabeller(replace(CONFIG, max_pixels_per_pass=1), SAM, 6, encoder=labeller.encoder)
    assert label(tight, [image(k) for k in (0, 1, 3)]) == rows


@pytest.mark.parametrize(
    ("objects", "labels", "expected"),
    [
        ((), (), {0}),  # known to have none of the classes
        ((), (2,), {255}),  # a class that nobody has located
        (None, (2,), {255}),
        ((AnnotatedObject(class_index=0, box_xyxy=(5, 7, 40, 50)),), (0, 2), {1, 255}),
        ((AnnotatedObject(class_index=0, box_xyxy=(5, 7, 40, 50)),), (0,), {0, 1}),
    ],
)
def test_what_no_mask_covers(labeller, objects, labels, expected):
    prepared = replace(image(0, objects, labels), objects=objects)
    (row,) = label(labeller, [prepared])
    assert set(np.unique(decode_mask(row["pseudo_label"]))) == expected


def test_unknown_labels_are_ignored_everywhere(labeller):
    table, tally = labeller([replace(image(2, ()), image_labels=None, objects=None)])
    assert (decode_mask(table.to_pylist()[0]["pseudo_label"]) == 255).all()
    assert tally.unknown == 1


def test_crowds_are_ignored_below_masks(labeller):
    crowd = AnnotatedObject(class_index=0, box_xyxy=(0, 0, 64, 20.5), iscrowd=True)
    alone, beside = label(labeller, [image(2, (crowd,)), image(0, (crowd, OBJECTS[0][0]))])
    expected = np.zeros((64, 64), np.uint8)
    expected[:21] = 255
    np.testing.assert_array_equal(decode_mask(alone["pseudo_label"]), expected)
    (segment,) = beside["segments"]
    expected[decode_rle(segment["rle"], (64, 64))] = 1
    np.testing.assert_array_equal(decode_mask(beside["pseudo_label"]), expected)
    assert segment["object_index"] == 1


def test_broken_images_stop_nothing(labeller, rows):
    broken = PreparedImage(image_id="broken", error="truncated JPEG")
    strange = image(2, (AnnotatedObject(class_index=6, box_xyxy=(1, 1, 9, 9)),))
    found = label(labeller, [broken, image(0), strange])
    assert [row["error"] for row in found] == ["truncated JPEG", None, "image label is 6; expected 0 to 5"]
    assert rles(found[1]) == rles(rows[0])


def test_both_uses_cams_where_there_are_no_objects(labeller, rows, classifier_dir):
    mixed = MixedLabeller(CONFIG, SAM, classifier_dir)
    prepare = PrepareImages(max_side_px=CONFIG.max_side_px, frame=InputFrame(IMAGE_SIZE_PX))
    by_cams = prepare.prepare("cams", scene(2), (1, 4))
    broken = PreparedImage(image_id="broken", error="text")
    found = label(mixed, [by_cams, image(0), broken, image(1)])
    assert [row["image_id"] for row in found] == ["cams", "0", "broken", "1"]
    assert [rles(found[1]), rles(found[3])] == [rles(rows[0]), rles(rows[1])]
    assert found[0] == label(SamLabeller(CONFIG, SAM, classifier_dir), [by_cams])[0]
    assert [s["object_index"] for s in found[0]["segments"]] == [None, None]
    assert label(mixed, []) == []  # as where all masks of a chunk were kept


def test_prompts_of_one_shape_share_decoder_calls(monkeypatch, labeller):
    calls: list[tuple[int, list[int]]] = []
    decode = labeller.sam.decode

    def count(embeddings, *prompts, image_index):
        calls.append((len(embeddings), image_index.tolist()))
        return decode(embeddings, *prompts, image_index=image_index)

    monkeypatch.setattr(labeller.sam, "decode", count)
    boxes = tuple(AnnotatedObject(class_index=0, box_xyxy=(k, k, 40, 50)) for k in range(3))
    label(labeller, [image(0, boxes), image(1, boxes), image(2, boxes)])
    # Each call's number of images with embeddings, and which of them each box has.
    assert calls == [(2, [0, 0, 0, 1]), (2, [0, 0, 1, 1]), (1, [0])]


def test_batches_have_one_shape():
    assert list(batch_by_shape(["a", "b", "a", "a", "b"], 2)) == [[0, 2], [3], [1, 4]]
    assert list(batch_by_shape([], 2)) == []


# --- The run -------------------------------------------------------------------------------------

HERE: Any = {"resources": Resources(actors=0), "cluster": Cluster()}
RECIPE = Recipe(label=CONFIG, sam=SAM)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    ingest_here(read_coco(*write_scene_coco(folder, "all", range(5), 64)), out=folder / "data", max_errors=0)
    return folder / "data"


def test_a_run_needs_no_classifier(dataset, tmp_path):
    out = tmp_path / "labels"
    inputs: Any = {"dataset": dataset, "classifier": None, "prompts_from": "annotations", **HERE}
    report = run_label(RECIPE, out=out, **inputs)
    assert (report.total.images, report.total.errors) == (5, 0)
    assert report.total.masks == sum(len(make_scene(k, 64, 64).objects) for k in range(5))
    changed = replace(RECIPE, label=replace(CONFIG, tau=0.3))  # which decides nothing here
    assert run_label(changed, out=out, **inputs).done_before == 5
    changed = replace(RECIPE, label=replace(CONFIG, object_prompts="points"))
    with pytest.raises(UserError, match=r"another label.object_prompts \(all, now points\)"):
        run_label(changed, out=out, **inputs)


def test_inputs_that_do_not_go_together(dataset, scene_dataset, classifier_dir, tmp_path):
    def run(prompts_from: Any, classifier: Path | None, data: Path = dataset, **changes: Any) -> None:
        recipe = replace(RECIPE, label=replace(CONFIG, **changes))
        inputs: Any = {"dataset": data, "classifier": classifier, "prompts_from": prompts_from, **HERE}
        run_label(recipe, out=tmp_path / "out", **inputs)

    with pytest.raises(UserError, match=r"--classifier is missing, .* --prompts-from cams"):
        run("cams", None)
    with pytest.raises(UserError, match="--classifier is missing"):
        run("both", None)
    with pytest.raises(UserError, match="would not be used with --prompts-from annotations"):
        run("annotations", classifier_dir)
    with pytest.raises(UserError, match=r"label.tile_px is 64; expected None"):
        run("annotations", None, tile_px=64)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_objects_is_refused(tmp_path):
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    (tmp_path / "table.csv").write_text("a.png,cat\n")
    ingest_here(read_csv(tmp_path / "table.csv"), out=tmp_path / "data", max_errors=0)
    with pytest.raises(UserError, match="has no boxes or points that could prompt SAM"):
        run_label(
            RECIPE,
            dataset=tmp_path / "data",
            classifier=None,
            out=tmp_path / "out",
            prompts_from="annotations",
            **HERE,
        )
