"""Differences between labels and their corrections, against plain NumPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_runs import write_labels
from reworked import rewrite, rows_of

from ray_wsss.cli import main
from ray_wsss.data.images import decode_mask, encode_mask
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.stages.curation.against import compare_masks


def shifted(row: dict[str, Any]) -> np.ndarray:
    return np.roll(decode_mask(row["mask"]), 3, axis=0)


@pytest.fixture(scope="module")
def labels(scene_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that are three pixels too low; the last image has none."""
    out = tmp_path_factory.mktemp("labels") / "labels"
    rows = [
        {"image_id": row["image_id"], "pseudo_label": encode_mask(shifted(row))}
        for row in rows_of(scene_dataset)
    ]
    rows[-1]["pseudo_label"] = None
    return write_labels(rows, out, {"dataset": str(scene_dataset)})


@pytest.fixture(scope="module")
def corrected(scene_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks of five images under other ids: two as they were, two right ones, and one that had no label."""
    out = tmp_path_factory.mktemp("corrected") / "corrected"

    def change(k: int, row: dict) -> dict | None:
        mask = encode_mask(shifted(row)) if k < 2 else row["mask"]
        return row | {"image_id": f"again {k}", "mask": mask} if k in (0, 1, 2, 3, 13) else None

    return rewrite(scene_dataset, out, change)


def test_what_was_changed(
    scene_dataset: Path, labels: Path, corrected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "changed.json"
    assert main(["evaluate", "--labels", str(labels), "--against", str(corrected), "--json", str(path)]) == 0
    found = json.loads(path.read_text())["against"]
    rows = rows_of(scene_dataset)
    pairs = [(shifted(rows[k]), shifted(rows[k])) for k in (0, 1)]
    pairs += [(shifted(rows[k]), decode_mask(rows[k]["mask"])) for k in (2, 3)]
    truth = decode_mask(rows[13]["mask"])
    before, after = (np.stack(maps) for maps in zip(*pairs, (np.zeros_like(truth), truth)))
    assert found["pixels_changed"] == pytest.approx((before != after).mean())
    assert (found["images"], found["images_changed"]) == (5, 3)
    for label, name in enumerate(("background", *DatasetMetadata.load(scene_dataset).class_names)):
        union = ((before == label) | (after == label)).sum()
        expected = ((before == label) & (after == label)).sum() / union if union else None
        assert found["iou"][name] == pytest.approx(expected)
    told = capsys.readouterr().out
    assert "images changed" in told
    assert f"{100 * found['pixels_changed']:.1f}" in told


def test_either_may_be_labels_or_a_data_set(scene_dataset: Path, labels: Path, corrected: Path) -> None:
    there, back = (compare_masks(*pair)["against"] for pair in ((labels, corrected), (corrected, labels)))
    assert back["images"] == 4  # one has no label
    assert compare_masks(labels, labels)["against"]["images_changed"] == 0
    assert compare_masks(scene_dataset, corrected)["against"]["images_changed"] == 2
    assert there["images_changed"] == 3


def test_ignored_pixels_are_changed_but_not_measured(scene_dataset: Path, tmp_path: Path) -> None:
    def ignore(k: int, row: dict) -> dict:
        mask = decode_mask(row["mask"])
        mask[:16] = 255
        return row | {"mask": encode_mask(mask)}

    found = compare_masks(scene_dataset, rewrite(scene_dataset, tmp_path / "ignored", ignore))["against"]
    assert found["pixels_changed"] == 0.25
    assert found["miou"] == 1


def test_refusals(
    scene_dataset: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = DatasetMetadata.load(scene_dataset).class_names
    other = rewrite(scene_dataset, tmp_path / "other", lambda k, row: row, tuple(f"other {n}" for n in names))
    with pytest.raises(UserError, match="none of the classes of"):
        compare_masks(labels, other)
    foreign = rewrite(
        scene_dataset, tmp_path / "foreign", lambda k, row: row | {"image_id": f"x{k}", "image": b"%d" % k}
    )
    with pytest.raises(UserError, match="a mask for none of the images"):
        compare_masks(labels, foreign)
    for words, message in {
        ("--against", str(other)): "--against needs --labels",
        (): "evaluate needs --dataset",
    }.items():
        assert main(["evaluate", *words]) != 0
        assert message in capsys.readouterr().err
