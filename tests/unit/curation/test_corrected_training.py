"""The segmenter learns corrected masks in place of pseudo labels, and leaves rejected ones out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_runs import write_labels
from reworked import rewrite, rows_of

from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.config import AugmentConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.data.images import decode_mask, encode_mask
from ray_wsss.errors import UserError
from ray_wsss.runs.curation.masks import open_hand_masks
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.segmenter import labelled_rows

RECIPE: Recipe = override(
    PRESETS["demo"],
    {
        "segmenter.max_iters": 2,
        "segmenter.batch_size": 4,
        "segmenter.checkpoint_every": 1,
        "segmenter.aspp_dim": 8,
        "segmenter.augment.long_side_px": (56, 72),
        "segmenter.augment.crop_px": 64,
        "segmenter.validate_every": 5,
    },
)
CORRECTED = (0, 1, 3, 5, 7, 9, 11, 13)
AS_IT_IS = AugmentConfig(
    long_side_px=(64, 64), crop_px=64, flip=False, jitter_probability=0.0, grey_probability=0.0
)


@pytest.fixture(scope="module")
def dataset(scene_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes; the image labels of the last one are unknown."""
    out = tmp_path_factory.mktemp("data") / "dataset"
    return rewrite(scene_dataset, out, lambda k, row: row | ({"image_labels": None} if k == 13 else {}))


@pytest.fixture(scope="module")
def labels(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty pseudo labels, of which the first failed; the one before the last was kept from masks by hand."""
    out = tmp_path_factory.mktemp("labels") / "labels"
    nothing = encode_mask(np.zeros((64, 64), np.uint8))
    rows: list[dict[str, Any]] = [
        {"image_id": row["image_id"], "pseudo_label": nothing, "error": None} for row in rows_of(dataset)
    ]
    rows[0] |= {"pseudo_label": None, "error": "broken"}
    return write_labels(rows, out, {})


@pytest.fixture(scope="module")
def corrections(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ground truth of `CORRECTED`."""
    out = tmp_path_factory.mktemp("corrected") / "corrected"
    return rewrite(dataset, out, lambda k, row: row if k in CORRECTED else None)


def test_corrected_images_are_trained_on_whatever_their_labels_are(
    dataset: Path, labels: Path, corrections: Path
) -> None:
    assert labelled_rows(dataset, labels, 4) == list(range(1, 13))
    masks = open_hand_masks("--corrections", corrections, dataset)
    assert labelled_rows(dataset, labels, 4, corrections=masks) == list(range(14))
    ids = [row["image_id"] for row in rows_of(dataset)]
    rejected = frozenset((ids[1], ids[4], ids[0]))
    rows = labelled_rows(dataset, labels, 4, corrections=masks, rejected=rejected)
    assert rows == [row for row in range(14) if row != 4]
    assert labelled_rows(dataset, labels, 4, rejected=rejected) == [row for row in range(2, 13) if row != 4]


def test_crops_have_the_corrected_mask_and_the_weight(dataset: Path, labels: Path, corrections: Path) -> None:
    crops = TrainingCrops(
        dataset,
        list(range(14)),
        num_classes=6,
        augment=AS_IT_IS,
        seed=0,
        labels=labels,
        corrections=open_hand_masks("--corrections", corrections, dataset),
        correction_weight=2.5,
    )
    for k, row in enumerate(rows_of(dataset)):
        if k in (0, 1, 4, 12, 13):
            item = crops[k, k]
            by_hand = k in CORRECTED
            assert item["weight"].dtype == torch.float32
            assert item["weight"] == (2.5 if by_hand else 1.0)
            truth = decode_mask(row["mask"])
            np.testing.assert_array_equal(item["pseudo_label"].numpy(), truth if by_hand else 0 * truth)
            assert "broken" not in item


def train(dataset: Path, labels: Path, out: Path, recipe: Recipe = RECIPE, **inputs: Any) -> bytes:
    """Train in this process; returns the network's weights."""
    where: Any = {"workers": Workers(workers=0), "cluster": Cluster()}
    run_train_segmenter(recipe, dataset=dataset, labels=labels, out=out, **where, **inputs)
    return (out / "model.safetensors").read_bytes()


def test_what_was_corrected_and_rejected_decides_the_network(
    dataset: Path, labels: Path, corrections: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plain = train(dataset, labels, tmp_path / "plain")
    assert not any("corrections" in line or "left out: rejected" in line for line in caplog.messages)
    corrected = train(dataset, labels, tmp_path / "corrected", corrections=corrections)
    assert corrected != plain
    assert any("8 images of" in line and "8 by id" in line for line in caplog.messages)
    heavy = override(RECIPE, {"segmenter.correction_weight": 4.0})
    assert train(dataset, labels, tmp_path / "heavy", heavy, corrections=corrections) != corrected
    assert train(dataset, labels, tmp_path / "no use", heavy) == plain
    with pytest.raises(UserError, match=r"holds a run with another corrections"):
        train(dataset, labels, tmp_path / "plain", corrections=corrections)
    with pytest.raises(UserError, match=r"another segmenter\.correction_weight"):
        train(dataset, labels, tmp_path / "corrected", heavy, corrections=corrections)

    ids = [row["image_id"] for row in rows_of(dataset)]
    review = tmp_path / "review.csv"
    review.write_text(f"image_id,verdict\n{ids[0]},reject\n{ids[4]},reject\n{ids[6]},accept\n")
    caplog.clear()
    assert train(dataset, labels, tmp_path / "reviewed", corrections=corrections, review=review) != corrected
    assert "1 of 14 images left out: rejected in review.csv" in caplog.messages
    assert any(line.startswith("1 more rejected images have corrected masks") for line in caplog.messages)
    with pytest.raises(UserError, match=r"another review\.rejected"):
        train(dataset, labels, tmp_path / "corrected", corrections=corrections, review=review)


def test_weight_must_be_more_than_nothing() -> None:
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"segmenter\.correction_weight is"):
            override(RECIPE, {"segmenter.correction_weight": weight})
