"""Exports without what a review rejects, and with the most doubtful labels first."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_runs import write_labels

from ray_wsss.cli import main
from ray_wsss.data.images import encode_mask
from ray_wsss.runs.curation.doubt import image_doubt
from ray_wsss.stages.label import LABEL_SCHEMA


def rows_of(labels: Path) -> list[dict[str, Any]]:
    return pq.read_table(labels / "shards" / "part-000000.parquet").to_pylist()


def tasks_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "tasks.json").read_text())


def test_what_a_review_rejects_is_left_out(
    export: Any, labelled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], names_of: Any
) -> None:
    rejected = ["a/b.jpg", "Größe 中文.png", "broken.jpg"]
    review = tmp_path / "review.csv"
    with review.open("w", encoding="utf-8", newline="") as file:
        rows = [("image_id", "verdict"), *((name, "reject") for name in rejected), ("Tom.jpg", "accept")]
        csv.writer(file).writerows(rows)
    whole = names_of(export("folder", out="whole"))
    capsys.readouterr()
    kept = names_of(export("folder", "--review", review))
    told = capsys.readouterr().out
    assert "3 of 14 images left out: rejected in review.csv" in told
    assert "0 errors" in told
    assert kept == {image_id: name for image_id, name in whole.items() if image_id not in rejected}
    words = ["--labels", labelled.labels, "--dataset", labelled.dataset, "--out", tmp_path / "export"]
    assert main(["export", "folder", *map(str, words)]) != 0
    assert "another review.rejected" in capsys.readouterr().err

    review.write_text("image_id,verdict\nnobody.jpg,reject\n")
    words = ["--labels", labelled.labels, "--dataset", labelled.dataset, "--review", review]
    assert main(["export", "coco", *map(str, words), "--out", str(tmp_path / "refused")]) != 0
    assert "line 2: there is no image 'nobody.jpg'" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_the_most_doubtful_tasks_come_first(export: Any, labelled: Any, tmp_path: Path) -> None:
    """Of labels whose masks differ in stability; and of equal ones, compared with other labels."""
    rows = [row for row in rows_of(labelled.labels) if row["error"] is None]
    for k, row in enumerate(rows):
        for segment in row["segments"]:
            segment["stability_score"] = (5 * k % 13) / 13
    rows[4]["segments"] = []
    doubted = write_labels(rows, tmp_path / "doubted", {}, LABEL_SCHEMA)
    words = ["--labels", doubted, "--dataset", labelled.dataset, "--order", "uncertain"]
    out = tmp_path / "out"
    assert main(["export", "label-studio", *map(str, words), "--out", str(out)]) == 0
    tasks = tasks_of(out)
    expected = {row["image_id"]: image_doubt(row["segments"]) for row in rows}
    found = [(task["data"]["ray_wsss_id"], task["data"].get("doubt")) for task in tasks]
    assert dict(found) == {k: v if v is None else round(v, 4) for k, v in expected.items()}
    doubts = [doubt for _, doubt in found[:-1]]
    assert doubts == sorted(doubts, reverse=True)
    assert len(set(doubts)) > 10
    assert found[-1] == (rows[4]["image_id"], None)

    others = [dict(row) for row in rows]
    for row in others[:3]:
        shape = labelled.label_maps[row["image_id"]].shape
        row["pseudo_label"] = encode_mask(np.full(shape, 3, np.uint8))
    compared = write_labels(others, tmp_path / "others", {}, LABEL_SCHEMA)
    plain = export("label-studio", "--order", "uncertain", "--compare", compared, out="compared")
    first = [task["data"]["ray_wsss_id"] for task in tasks_of(plain)[:3]]
    assert set(first) == {row["image_id"] for row in others[:3]}
    assert "doubt" not in tasks_of(export("label-studio", out="plain"))[0]["data"]


def test_refusals_of_an_order(labelled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--labels", labelled.labels, "--dataset", labelled.dataset, "--out", tmp_path / "out"]
    for words, message in (
        ([*inputs, "--compare", tmp_path], "--compare needs --order uncertain"),
        ([*inputs, "--order", "uncertain", "--compare", tmp_path], "no finished output of label or predict"),
        (["--predictions", tmp_path, "--images", tmp_path, "--order", "uncertain", "--out", tmp_path / "o"],
         "--order uncertain needs --labels"),
    ):  # fmt: skip
        assert main(["export", "label-studio", *map(str, words)]) != 0
        assert message in capsys.readouterr().err


def test_masks_by_hand_need_no_score(labelled: Any, tmp_path: Path) -> None:
    """Of labels that kept masks, ``--min-score`` drops only those of SAM."""
    rows = [row for row in rows_of(labelled.labels) if row["error"] is None][:2]
    rows[0] |= {"segments": [], "source": "kept"}
    schema = LABEL_SCHEMA.append(pa.field("source", pa.string()))
    kept = write_labels(rows, tmp_path / "kept", {}, schema)
    words = ["--labels", kept, "--dataset", labelled.dataset, "--min-score", "1", "--out", tmp_path / "out"]
    assert main(["export", "coco", *map(str, words)]) == 0
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    with_masks = {entry["image_id"] for entry in content["annotations"]}
    ids = {entry["id"]: entry["ray_wsss_id"] for entry in content["images"]}
    assert {ids[number] for number in with_masks} == {rows[0]["image_id"]}
    assert all("score" not in entry for entry in content["annotations"])
