"""Labelling on Ray: the number of actors changes nothing, and a bad row stops nothing."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.cluster.chunks import RunReport
from ray_wsss.cluster.labelling import run_label
from ray_wsss.cluster.map import Resources
from ray_wsss.cluster.session import Cluster
from ray_wsss.config import Recipe
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError

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


def test_a_finished_run_is_left_alone(
    small_recipe: Recipe, dataset: Path, classifier: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in labels.rglob("*")}
    assert _label(small_recipe, dataset, classifier, labels).total.images == 24
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in labels.rglob("*")} == before


def _break_images(dataset: Path, out: Path, bad: set[int]) -> Path:
    shutil.copytree(dataset, out)
    (shard,) = (out / "shards").glob("*.parquet")
    table = pq.read_table(shard)
    images = [b"no image" if k in bad else value for k, value in enumerate(table["image"].to_pylist())]
    table = table.set_column(1, table.schema.field("image"), pa.array(images, pa.binary()))
    pq.write_table(table, shard)
    return out


def test_bad_rows_do_not_stop_the_run(
    small_recipe: Recipe, dataset: Path, classifier: Path, labels: Path, tmp_path: Path
) -> None:
    broken = _break_images(dataset, tmp_path / "broken", {0, 7})
    summary = _label(small_recipe, broken, classifier, tmp_path / "out", actors=2)
    assert (summary.total.images, summary.total.errors) == (22, 2)
    ids, rows, good = ShardReader(dataset).image_ids, _rows(tmp_path / "out"), _rows(labels)
    assert {image_id for image_id, row in rows.items() if row["error"]} == {ids[0], ids[7]}
    assert rows[ids[0]]["pseudo_label"] is None
    # A batch that lost an image may round differently, so masks are not compared to the bit.
    for name in set(ids) - {ids[0], ids[7]}:
        assert rows[name]["pseudo_label"] is not None
        found, expected = ([s["class_index"] for s in r[name]["segments"]] for r in (rows, good))
        assert found == expected


def test_all_rows_bad_is_an_error(
    small_recipe: Recipe, dataset: Path, classifier: Path, tmp_path: Path
) -> None:
    broken = _break_images(dataset, tmp_path / "broken", set(range(24)))
    assert DatasetMetadata.load(broken).images == 24
    with pytest.raises(UserError, match="all 24 images failed"):
        _label(small_recipe, broken, classifier, tmp_path / "out")
