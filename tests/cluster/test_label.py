"""Labelling on Ray: the number of actors changes nothing, and a bad row stops nothing."""

import io
import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_wsss.cluster import run_chunks
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.runs import chunk_run
from ray_wsss.runs.manifest import read_manifest
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.runs.run_report import RunReport

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _label(recipe: Recipe, dataset: Path, classifier: Path, out: Path, actors: int = 1) -> RunReport:
    return run_label(
        recipe,
        dataset=dataset,
        classifier=classifier,
        out=out,
        resources=Resources(actors=actors),
        cluster=Cluster(),
    )


def _rows(labels: Path) -> dict[str, dict]:
    reader = ShardReader(labels)
    rows = [reader.read(i) for i in range(len(reader))]
    by_id = {row["image_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def test_two_actors_make_the_same_labels(
    small_recipe: Recipe, dataset: Path, classifier: Path, labels: Path, tmp_path: Path
) -> None:
    summary = _label(small_recipe, dataset, classifier, tmp_path / "two", actors=2)
    one, two = _rows(labels), _rows(tmp_path / "two")
    assert set(one) == set(ShardReader(dataset).image_ids)
    assert one == two
    assert summary.total.images == 24
    assert summary.total.masks == sum(len(row["segments"]) for row in one.values())


def test_a_data_set_that_takes_several_plans_gets_the_same_labels(
    small_recipe: Recipe,
    dataset: Path,
    classifier: Path,
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_run, "plan_chunks", partial(plan_chunks, rows=10))  # 10, 10 and 4 images
    monkeypatch.setattr(run_chunks, "chunks_per_plan", lambda actors: 2)
    _label(small_recipe, dataset, classifier, tmp_path / "out")
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 3
    assert _rows(tmp_path / "out") == _rows(labels)


def test_a_finished_run_is_left_alone(
    small_recipe: Recipe, dataset: Path, classifier: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray_wsss")
    before = {path: path.stat().st_mtime_ns for path in labels.rglob("*")}
    assert _label(small_recipe, dataset, classifier, labels).total.images == 24
    assert "already finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in labels.rglob("*")} == before


def test_the_side_for_the_classifier_decides(
    small_recipe: Recipe, dataset: Path, classifier: Path, labels: Path
) -> None:
    """The recipe leaves it to the classifier, whose training saw long sides of up to 112 px."""
    found = read_manifest(labels)
    assert found is not None
    assert found["depends_on"]["label.classifier_side_px"] == 112
    for side_px, fits in ((112, True), (64, False)):
        recipe = override(small_recipe, {"label.classifier_side_px": side_px})
        if fits:
            assert _label(recipe, dataset, classifier, labels).total.images == 24
            continue
        with pytest.raises(UserError, match=r"another label\.classifier_side_px \(112, now 64\)"):
            _label(recipe, dataset, classifier, labels)


def _jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


# Column, what stands in it instead, and the reason that is given.
BROKEN: dict[str, tuple[str, Any, str]] = {
    "truncated": ("image", _jpeg(64, 64)[:1200], "truncated JPEG"),
    "header only": ("image", _jpeg(64, 64)[:20], "truncated JPEG (its header"),
    "text": ("image", b"these are no pixels", "not an image"),
    "empty": ("image", b"", "empty file"),
    "missing": ("image", None, "no image in the row"),
    "too thin": ("image", _jpeg(1, 3000), "too thin"),
    "turned oddly": ("orientation", 9, "orientation is 9"),
    "unknown class": ("image_labels", [0, 99], "image label is 99"),
    "no class": ("image_labels", [None], "expected class indices"),
}


def _plant(dataset: Path, out: Path, broken: dict[int, tuple[str, Any, str]]) -> Path:
    """A copy of a data set of one shard with some rows broken, as if another tool had written it."""
    shutil.copytree(dataset, out)
    (shard,) = (out / "shards").glob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    for at, (column, value, _) in broken.items():
        rows[at][column] = value
    schema = pa.schema([field.with_nullable(True) for field in IMAGE_SCHEMA])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), shard, row_group_size=50)
    return out


def test_five_percent_of_broken_images_stop_nothing(
    small_recipe: Recipe, write_dataset: Callable[[Path, int], Path], classifier: Path, tmp_path: Path
) -> None:
    whole = write_dataset(tmp_path, 20 * len(BROKEN))
    broken = {20 * k + k: kind for k, kind in enumerate(BROKEN.values())}
    dataset = _plant(whole, tmp_path / "broken", broken)
    report = _label(small_recipe, dataset, classifier, tmp_path / "out", actors=2)
    assert (report.total.images, report.total.errors) == (19 * len(BROKEN), len(BROKEN))
    rows, ids = _rows(tmp_path / "out"), ShardReader(whole).image_ids
    assert list(rows) == ids
    listed = pq.read_table(tmp_path / "out" / "errors.parquet").to_pylist()
    assert [error["image_id"] for error in listed] == [ids[at] for at in broken]
    for error, (_, _, reason) in zip(listed, broken.values()):
        assert reason in error["reason"]
        assert rows[error["image_id"]]["error"] == error["reason"]
        assert rows[error["image_id"]]["pseudo_label"] is None
    good = [row for image_id, row in rows.items() if row["error"] is None]
    assert len(good) == report.total.images
    assert all(decode_mask(row["pseudo_label"]).shape == (96, 96) for row in good)


def test_images_of_unknown_labels_are_counted_told_and_ignored(
    small_recipe: Recipe, dataset: Path, classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planted = {3: ("image_labels", None, ""), 4: ("image_labels", [], ""), 9: ("image_labels", None, "")}
    mixed = _plant(dataset, tmp_path / "mixed", planted)
    for _ in range(2):  # the second time, the counts come from the parts
        caplog.clear()
        report = _label(small_recipe, mixed, classifier, tmp_path / "out")
        assert (report.total.images, report.total.errors, report.total.unknown) == (24, 0, 2)
        assert "the labels of 2 of 24 images are unknown" in caplog.text
    rows = list(_rows(tmp_path / "out").values())
    found = {k: set(decode_mask(rows[k]["pseudo_label"]).ravel().tolist()) for k in planted}
    assert found == {3: {255}, 4: {0}, 9: {255}}
    (run,) = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert run["figures"]["unknown"] == 2


def test_all_rows_bad_is_an_error(
    small_recipe: Recipe, dataset: Path, classifier: Path, tmp_path: Path
) -> None:
    broken = _plant(dataset, tmp_path / "broken", dict.fromkeys(range(24), BROKEN["text"]))
    assert DatasetMetadata.load(broken).images == 24
    with pytest.raises(UserError, match="all 24 images failed"):
        _label(small_recipe, broken, classifier, tmp_path / "out")


def test_without_actors_the_labels_are_the_same(
    dataset: Path, classifier: Path, labels: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    """Bit for bit, with as many threads as an actor has."""
    out, threads = tmp_path / "labels", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_label(
            small_recipe,
            dataset=dataset,
            classifier=classifier,
            out=out,
            resources=Resources(actors=0),
            cluster=Cluster(address="nobody-listens:1"),  # so Ray is not asked
        )
    finally:
        torch.set_num_threads(threads)
    assert _rows(out) == _rows(labels)
    (run,) = json.loads((out / "runs.json").read_text())
    assert "cluster" not in run
