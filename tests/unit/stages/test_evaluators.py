"""Confusion counts against torchmetrics and plain loops."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ray_wsss.config import LabelConfig, PredictConfig
from ray_wsss.data.images import decode_image, decode_mask, encode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import IMAGE_SCHEMA, write_table_atomically
from ray_wsss.models.store import load_classifier, load_segmenter
from ray_wsss.ops.resize import to_tensor
from ray_wsss.stages.cams import find_cams
from ray_wsss.stages.evaluate import (
    THRESHOLDS,
    CamEvaluator,
    Evaluator,
    LabelEvaluator,
    SegmenterEvaluator,
    add_up,
    describe_counts,
)

CONFIG = LabelConfig(scales=(1.0,), flip=False)
LABELS = 7


@pytest.fixture(scope="module")
def table(scene_dataset) -> pa.Table:
    """Six scenes; some truth is to be ignored, one has no truth, one no class."""
    reader = ShardReader(scene_dataset)
    rows = [reader.read(k) for k in range(6)]
    for k, row in enumerate(rows):
        truth = decode_mask(row["mask"]).copy()
        truth[: 4 * k] = 255
        row["mask"] = encode_mask(truth)
    rows[2]["mask"] = None
    rows[4]["image_labels"] = []
    return pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)


@pytest.fixture(scope="module")
def labels_dir(table, tmp_path_factory) -> Path:
    """Pseudo labels in reverse order; image 0 has none, image 5 an empty one."""
    rng = np.random.default_rng(0)
    rows = []
    for image_id in table["image_id"].to_pylist()[:0:-1]:
        png = encode_mask(np.kron(rng.integers(0, LABELS, (8, 8)), np.ones((8, 8))).astype(np.uint8))
        rows.append({"image_id": image_id, "pseudo_label": png})
    rows[0]["pseudo_label"] = None
    folder = tmp_path_factory.mktemp("labels")
    schema = pa.schema([("image_id", pa.string()), ("pseudo_label", pa.binary())])
    write_table_atomically(pa.Table.from_pylist(rows, schema=schema), folder / "part-00000.parquet")
    return folder


def with_truth(table: pa.Table) -> list[dict]:
    rows = [row for row in table.to_pylist() if row["mask"] is not None]
    assert len(rows) == 5
    for row in rows:
        row["truth"] = torch.from_numpy(decode_mask(row["mask"])).long()
        row["pixels"] = decode_image(row["image"])
    return rows


def expected_counts(rows: list[dict], predictions: list[torch.Tensor]) -> torch.Tensor:
    truth = torch.stack([row["truth"] for row in rows])
    return multiclass_confusion_matrix(torch.stack(predictions).long(), truth, LABELS, ignore_index=255)


def test_pseudo_label_counts(table, labels_dir):
    written = {}
    for row in ShardReader(labels_dir).image_ids:
        reader = ShardReader(labels_dir)
        written[row] = reader.read(reader.index_of(row))["pseudo_label"]
    rows = with_truth(table)
    predictions = []
    for row in rows:
        png = written.get(row["image_id"])
        background = torch.zeros(64, 64)
        predictions.append(background if png is None else torch.from_numpy(decode_mask(png)))
    total, images = add_up(LabelEvaluator(labels_dir, LABELS)(table).to_pylist())["pseudo_label"]
    assert images == 5
    assert torch.equal(total.matrix().counts, expected_counts(rows, predictions))
    assert not all(p.any() for p in predictions)


@torch.no_grad()
@pytest.mark.parametrize("max_side_px", [64, 48])
def test_segmenter_counts(table, segmenter_dir, max_side_px):
    model, _ = load_segmenter(segmenter_dir)
    rows = with_truth(table)
    predictions = []
    for row in rows:
        image = torch.from_numpy(row["pixels"]).permute(2, 0, 1)[None]
        if max_side_px < 64:
            image = F.interpolate(image, (max_side_px,) * 2, mode="bilinear", antialias=True)
        logits = F.interpolate(model(image / 255), (max_side_px,) * 2, mode="bilinear")
        logits = F.interpolate(logits, (64, 64), mode="bilinear")
        predictions.append(logits[0].argmax(0))
    config = PredictConfig(max_side_px=max_side_px)
    total, images = add_up(SegmenterEvaluator.load(segmenter_dir, config)(table).to_pylist())["segmenter"]
    assert images == 5
    assert torch.equal(total.matrix().counts, expected_counts(rows, predictions))
    assert (total.matrix().counts.sum(0) > 0).sum() >= 2


def test_cam_counts_at_every_threshold(table, classifier_dir):
    model, _ = load_classifier(classifier_dir)
    ((total, images),) = add_up(CamEvaluator.load(classifier_dir, CONFIG, 0.421)(table).to_pylist()).values()
    assert set(total.thresholds) == {*THRESHOLDS, 0.421}
    assert images == 5
    rows = with_truth(table)
    for threshold in (0.05, 0.3, 0.421, 0.95):
        predictions = []
        for row in rows:
            image_labels = torch.zeros(1, 6)
            image_labels[0, row["image_labels"]] = 1
            batch = to_tensor([row["pixels"]], torch.device("cpu"))
            cams = find_cams(model, batch, image_labels, scales=(1.0,), flip=False)
            # Background as one more class with a constant score; the class of an index is that of its CAM.
            scores = torch.cat([torch.full((1, 64, 64), threshold), cams.cam])
            stored = torch.cat([torch.zeros(1), cams.class_index + 1.0])
            predictions.append(stored[scores.argmax(0)])
        assert torch.equal(total.matrix(threshold).counts, expected_counts(rows, predictions))
    counts = [total.matrix(t).counts[:, 0].sum() for t in THRESHOLDS]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_results_of_cams(table, classifier_dir):
    """At the fixed threshold, also if no other has its value, and at the best of all."""
    rows = CamEvaluator.load(classifier_dir, CONFIG, 0.421)(table).to_pylist()
    (row,) = rows
    assert len(row["cells"]) < 2_000  # of 7 x 7 x 101: zeros don't travel
    counts, _ = add_up(rows)["cam"]
    mious = {t: counts.matrix(t).miou() for t in counts.thresholds}
    found = describe_counts(rows, tuple("abcdef"), 0.421)
    assert list(found) == ["cam_fixed", "cam_best"]
    for measure in found.values():
        assert set(measure) == {"threshold", "miou", "iou", "confusion", "images"}
        assert measure["images"] == 5
    assert found["cam_fixed"].get("threshold") == 0.421
    assert found["cam_fixed"]["miou"] == mious[0.421]
    assert found["cam_best"]["miou"] == max(mious.values())
    assert mious[found["cam_best"].get("threshold", -1)] == max(mious.values())


def test_a_threshold_close_to_another_keeps_its_own_counts(table, classifier_dir):
    close = 0.3000001  # as a text of six digits it would be 0.3
    rows = CamEvaluator.load(classifier_dir, CONFIG, close)(table).to_pylist()
    assert {0.3, close} < set(add_up(rows)["cam"][0].thresholds)
    assert describe_counts(rows, tuple("abcdef"), close)["cam_fixed"].get("threshold") == close


def test_parts_add_up(table, classifier_dir, labels_dir, segmenter_dir):
    evaluator = Evaluator(
        [
            (CamEvaluator.load, {"classifier": classifier_dir, "config": CONFIG, "threshold": 0.3}),
            (LabelEvaluator, {"labels": labels_dir, "num_labels": LABELS}),
            (SegmenterEvaluator.load, {"segmenter": segmenter_dir, "config": PredictConfig(max_side_px=64)}),
        ]
    )
    whole = add_up(evaluator(table).to_pylist())
    parts = [evaluator(table.slice(start, length)) for start, length in ((0, 2), (2, 1), (3, 3))]
    summed = add_up(row for part in parts for row in part.to_pylist())
    assert set(whole) == set(summed) == {"cam", "pseudo_label", "segmenter"}
    for name, (total, images) in whole.items():
        assert torch.equal(summed[name][0].cells, total.cells)
        assert torch.equal(summed[name][0].pixels, total.pixels)
        assert summed[name][1] == images == 5
