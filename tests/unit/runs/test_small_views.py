"""A warning, once and with counts, that the classifier sees images much smaller than they are."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_wsss.config import LabelConfig
from ray_wsss.data.schema import IMAGE_SCHEMA, write_table_atomically
from ray_wsss.runs.small_views import warn_of_small_views
from ray_wsss.stages.label_images import ImageLabeller

CONFIG = LabelConfig(classifier_side_px=500)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of these sizes in two shards; nobody looks at their pixels."""
    folder = tmp_path_factory.mktemp("sizes")
    sizes = [[("photo", 400, 600), ("scene_3", 6000, 8000), ("limit", 1000, 800)], [("sheet", 1200, 900)]]
    for k, shard in enumerate(sizes):
        rows = [
            {"image_id": name, "image": b"", "orientation": 1, "height": height, "width": width}
            for name, height, width in shard
        ]
        table = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
        write_table_atomically(table, folder / "shards" / f"part-{k:05}.parquet")
    return folder


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_how_many_how_far_and_what_to_do(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_small_views(CONFIG, dataset)
    assert said(caplog) == [
        "2 of 4 images are shown to the classifier at less than half their size, scene_3 (8000x6000 px) at "
        "1/16: objects under 256 px have less than 16 px there, and may be lost; --label.tile-px 500 labels "
        "them in tiles of which none is shrunk"
    ]


def test_the_working_size_shrinks_too(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_small_views(replace(CONFIG, classifier_side_px=None), dataset)
    (line,) = said(caplog)
    assert line.startswith("1 of 4 images")
    assert "at 1/7.81: objects under 125 px" in line
    assert "--label.tile-px 1024" in line


def test_tiles_end_the_warning_unless_they_are_shrunk(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_small_views(replace(CONFIG, tile_px=1000), dataset)
    assert said(caplog) == []
    warn_of_small_views(replace(CONFIG, tile_px=1000, classifier_side_px=250), dataset)
    (line,) = said(caplog)
    assert line.startswith("4 of 4 images")  # also the photograph, which is no larger than a tile
    assert line.endswith("; smaller tiles (label.tile_px) are shrunk less")
    caplog.clear()
    warn_of_small_views(replace(CONFIG, classifier_side_px=8000, max_side_px=8000), dataset)
    assert said(caplog) == []


def test_no_tile_is_that_small(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_small_views(replace(CONFIG, classifier_side_px=60), dataset)
    assert "tile" not in said(caplog)[0]


def test_single_images_are_warned_of_once(classifier_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"label.max_side_px": 64, "label.scales": (1.0,)}
    labeller = ImageLabeller(classifier_dir, preset="demo", settings=settings, device="cpu")
    for side in (128, 160, 160):
        labeller(np.zeros((96, side, 3), np.uint8), classes=[], source=f"array {side}")
    (line,) = said(caplog)
    assert line.startswith(
        "the classifier sees array 160 (160x96 px) at 1/2.5 of its size: objects under 40 px"
    )
