"""Unknown labels and "none of the classes" are two things, in every stage and in both formats."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_wsss.benchmark.naive import NaiveLabeller
from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.images import decode_mask, encode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.report.gallery_source import GallerySource, choose_images
from ray_wsss.report.survey import survey
from ray_wsss.runs.prepared_images import PrepareImages, pack_images, unpack_images
from ray_wsss.runs.read_chunks import IMAGE_COLUMNS, plan_chunks, read_chunk
from ray_wsss.stages.evaluate import CamEvaluator, LabelEvaluator, add_up
from ray_wsss.stages.label import LABEL_SCHEMA, SamLabeller
from ray_wsss.training.classifier import check_trainable, train_classifier
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.local_session import LocalSession
from ray_wsss.training.segmenter import labelled_rows, train_segmenter

ROWS = 12
UNKNOWN, EMPTY = (1, 6), (2, 9)
LABELS = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0,), flip=False, max_side_px=64)
SAM = SamConfig(name="tiny", precision="fp32")
RECIPE: Recipe = override(
    PRESETS["demo"],
    {
        "cpm.warmup_iters": 1,
        "cpm.min_distance_px": 4,
        "classifier.feature_dim": 16,
        "segmenter.aspp_dim": 8,
        **{
            f"{stage}.{name}": value
            for stage in ("classifier", "segmenter")
            for name, value in {
                "max_iters": 3,
                "batch_size": 4,
                "augment.long_side_px": (56, 72),
                "augment.crop_px": 64,
            }.items()
        },
    },
)


def _write(folder: Path, rows: list[dict[str, Any]], version: int) -> Path:
    """A data set as a version of ray-wsss wrote it."""
    at = IMAGE_SCHEMA.get_field_index("image_labels")
    schema = IMAGE_SCHEMA
    counts = {"images": len(rows), "unlabelled": 2, "empty": 2, "errors": 0}
    if version == 1:
        schema = schema.set(at, pa.field("image_labels", pa.list_(pa.int32()), nullable=False))
        rows = [row | {"image_labels": row["image_labels"] or []} for row in rows]
        counts = {"images": len(rows), "unlabelled": 4, "errors": 0}
    (folder / "shards").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, folder / "shards" / "part-00000.parquet", row_group_size=5)
    content = {"format_version": version, "class_names": list("abcdef"), "counts": counts}
    (folder / "metadata.json").write_text(json.dumps(content | {"source": "coco", "has_masks": True}))
    return folder


@pytest.fixture(scope="module")
def rows(scene_dataset) -> list[dict[str, Any]]:
    """Twelve scenes: two with unknown labels, two said to have none of the classes."""
    reader = ShardReader(scene_dataset)
    rows = [reader.read(k) for k in range(ROWS)]
    assert all(row["image_labels"] for row in rows)
    for k in UNKNOWN:
        rows[k]["image_labels"] = None
    for k in EMPTY:
        rows[k]["image_labels"] = []
    return rows


@pytest.fixture(scope="module", params=[1, 2])
def version(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def mixed(rows, version, tmp_path_factory) -> Path:
    return _write(tmp_path_factory.mktemp("mixed") / "dataset", rows, version)


@pytest.fixture(scope="module")
def expected(rows, version) -> list[list[int] | None]:
    """Labels as they are to be read: version 1 had one value for both."""
    return [row["image_labels"] or None if version == 1 else row["image_labels"] for row in rows]


@pytest.fixture(scope="module")
def old_labels(rows, tmp_path_factory) -> Path:
    """Labels as version 0.1 made them: all background for images of unknown labels."""
    folder = tmp_path_factory.mktemp("labels")
    labels = []
    for row in rows:
        png = row["mask"] if row["image_labels"] else encode_mask(np.zeros((64, 64), np.uint8))
        labels.append({"image_id": row["image_id"], "pseudo_label": png, "segments": []})
    table = pa.Table.from_pylist(labels, schema=LABEL_SCHEMA)
    pq.write_table(table, folder / "part-000000.parquet")
    return folder


def _label(dataset: Path, labeller: SamLabeller) -> tuple[pa.Table, Any]:
    (chunk,) = plan_chunks(dataset)
    prepare = PrepareImages(max_side_px=LABELS.max_side_px, frame=InputFrame(IMAGE_SIZE_PX))
    # As on a cluster, where images go from one process to another.
    return labeller(unpack_images(pack_images(prepare(chunk))))


@pytest.fixture(scope="module")
def labeller(classifier_dir) -> SamLabeller:
    return SamLabeller(LABELS, SAM, classifier_dir)


def test_both_ways_of_reading_tell_them_apart(mixed, expected, version):
    reader = ShardReader(mixed)
    assert [reader.read(k)["image_labels"] for k in range(ROWS)] == expected
    assert [reader.read(k, ["image_labels"])["image_labels"] for k in range(ROWS)] == expected
    for size in (ROWS, 5, 7):  # chunks that are row groups, and chunks that are not
        tables = [read_chunk(chunk, IMAGE_COLUMNS) for chunk in plan_chunks(mixed, size)]
        assert [labels for t in tables for labels in t["image_labels"].to_pylist()] == expected
    metadata = DatasetMetadata.load(mixed)
    assert (metadata.unlabelled, metadata.empty) == ((4, 0) if version == 1 else (2, 2))


def test_label_ignores_unknown_images_and_finds_nothing_in_empty_ones(mixed, expected, labeller):
    table, tally = _label(mixed, labeller)
    assert table.schema.equals(LABEL_SCHEMA)
    assert (tally.images, tally.errors, tally.unknown) == (ROWS, 0, expected.count(None))
    for labels, row in zip(expected, table.to_pylist(), strict=True):
        assert (row["error"], row["height"], row["width"]) == (None, 64, 64)
        assert [segment["class_index"] for segment in row["segments"]] == (labels or [])
        found = set(np.unique(decode_mask(row["pseudo_label"])).tolist())
        if labels is None:
            assert found == {255}
        else:
            assert found <= {0, *(c + 1 for c in labels)}
    assert any(decode_mask(row["pseudo_label"]).any() for row in table.to_pylist() if row["segments"])


def test_a_chunk_of_unknown_images_alone(rows, labeller, tmp_path):
    unknown = [row | {"image_labels": None} for row in rows[:3]]
    table, tally = _label(_write(tmp_path / "dataset", unknown, 2), labeller)
    assert (tally.images, tally.unknown, tally.masks) == (3, 3, 0)
    assert all((decode_mask(png) == 255).all() for png in table["pseudo_label"].to_pylist())


def test_the_naive_labeller_agrees(mixed, expected, labeller, classifier_dir):
    (chunk,) = plan_chunks(mixed)
    naive, tally = NaiveLabeller(LABELS, SAM, classifier_dir, "cpu")(chunk)
    ours = _label(mixed, labeller)[0]
    assert (tally.images, tally.unknown) == (ROWS, expected.count(None))
    for k, labels in enumerate(expected):
        if not labels:
            assert naive["pseudo_label"][k].as_py() == ours["pseudo_label"][k].as_py()


def test_training_rows(mixed, expected, old_labels, caplog):
    known = [k for k, labels in enumerate(expected) if labels is not None]
    caplog.set_level(logging.INFO, "ray_wsss")
    assert check_trainable(mixed, 4) == labelled_rows(mixed, old_labels, 4) == known
    assert not caplog.messages
    left_out = f"{ROWS - len(known)} images are left out, because their labels are unknown"
    assert check_trainable(mixed, 4, tell=True) == known
    negatives = expected.count([])
    told = [f"{negatives} images have none of the classes: all classes are absent in them"]
    assert caplog.messages[:-1] == [left_out, *(told if negatives else [])]
    assert caplog.messages[-1].startswith("no image has 'f':")
    caplog.clear()
    assert labelled_rows(mixed, old_labels, 4, tell=True) == known
    assert caplog.messages == [left_out]
    for find in (lambda: check_trainable(mixed, 11), lambda: labelled_rows(mixed, old_labels, 11)):
        with pytest.raises(UserError, match=f"{len(known)} .*at least one batch of 11"):
            find()


@pytest.mark.parametrize("stage", ["classifier", "segmenter"])
def test_training_equals_that_without_the_unknown_images(stage, rows, mixed, expected, old_labels, tmp_path):
    """The old segmenter learned background from them; negatives are trained on."""
    kept = [row for row, labels in zip(rows, expected) if labels is not None]
    weights = []
    for name, dataset in (("mixed", mixed), ("known", _write(tmp_path / "dataset", kept, 2))):
        session = LocalSession(tmp_path / name)
        if stage == "classifier":
            train_classifier(RECIPE, dataset, session)
        else:
            train_segmenter(RECIPE, dataset, old_labels, session)
        folder = session.latest_checkpoint()
        assert folder is not None
        weights.append((folder / "model.safetensors").read_bytes())
        history = json.loads((folder / "progress.json").read_text())["history"]
        assert all(np.isfinite(value) for entry in history for value in entry.values())
    assert weights[0] == weights[1]


def test_crops_leave_out_unknown_labels_and_give_empty_ones_no_class(mixed, expected):
    crops = TrainingCrops(mixed, list(range(ROWS)), num_classes=6, augment=RECIPE.classifier.augment, seed=0)
    for k, labels in enumerate(expected):
        crop = crops[k, k]
        if labels is None:
            assert crop["broken"][2] == "its image labels are unknown, and so no target"
        else:
            assert "broken" not in crop
            assert crop["image_labels"].nonzero()[:, 0].tolist() == labels


def test_evaluate_counts_ignored_pixels_as_background(rows, tmp_path, classifier_dir):
    table = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    counts = []
    for name, value in (("ignored", 255), ("background", 0)):
        png = encode_mask(np.full((64, 64), value, np.uint8))
        labels = [{"image_id": row["image_id"], "pseudo_label": png} for row in rows]
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(labels), tmp_path / name / "part-000000.parquet")
        counts.append(
            add_up(LabelEvaluator(tmp_path / name, 7)(table).to_pylist())["pseudo_label"][0].matrix().counts
        )
    assert torch.equal(counts[0], counts[1])
    assert counts[0].sum() == ROWS * 64 * 64

    empty = pa.Table.from_pylist([r | {"image_labels": r["image_labels"] or []} for r in rows], IMAGE_SCHEMA)
    evaluator = CamEvaluator.load(classifier_dir, LABELS, 0.3)
    unknown, none = (add_up(evaluator(t).to_pylist())["cam"][0].matrix(0.3).counts for t in (table, empty))
    assert torch.equal(unknown, none)


def test_the_reports_survey_and_gallery_show_unknown_images(mixed, labeller, classifier_dir, tmp_path):
    pq.write_table(_label(mixed, labeller)[0], tmp_path / "part-000000.parquet")
    surveyed = survey(mixed, tmp_path)
    assert (len(surveyed.images), surveyed.failed, surveyed.compared) == (ROWS, [], ROWS)
    metadata = DatasetMetadata.load(mixed)
    assert (surveyed.unlabelled, surveyed.empty) == (metadata.unlabelled, metadata.empty)
    failed: list[tuple[str, str]] = []
    source = GallerySource(
        mixed,
        tmp_path,
        classifier=classifier_dir,
        config=LABELS,
        segmenter=None,
        predictions=None,
        failed=failed,
    )
    shown = list(source(choose_images(surveyed.images, None)))
    assert (len(shown), failed) == (ROWS, [])
    for k in UNKNOWN:
        truth = decode_mask(ShardReader(mixed).read(k, ["mask"])["mask"])
        of_truth = [c - 1 for c in np.unique(truth).tolist() if 0 < c < 255]
        assert (shown[k].cam, shown[k].masks, shown[k].facts()["classes"]) == (None, [], of_truth)


def test_classes_that_no_image_can_teach_are_named(rows, tmp_path, caplog):
    for at, labels in enumerate([[0, 1], [0], [0, 1, 2], [0, 2]]):
        rows[at] = rows[at] | {"image_labels": labels}
    dataset = _write(tmp_path / "dataset", rows[:4], 2)
    check_trainable(dataset, 2, tell=True)
    every, none = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert every.startswith("every image has 'a':")
    assert "add images without it" in every
    assert "--none-folder" in every
    assert none.startswith("no image has 'd', 'e', 'f':")
    caplog.clear()
    rows[4] = rows[4] | {"image_labels": []}
    check_trainable(_write(tmp_path / "better", rows[:5], 2), 2, tell=True)
    assert [message[:12] for message in caplog.messages] == ["no image has"]
