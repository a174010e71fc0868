"""Our exports, ingested again, give the same labels."""

from pathlib import Path

import numpy as np
import pytest

from ray_wsss.data.coco import read_coco
from ray_wsss.data.images import decode_mask
from ray_wsss.data.label_studio import read_label_studio
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.source import Source
from ray_wsss.data.voc import read_voc
from ray_wsss.label_format import LabelMap
from ray_wsss.stages.ingest import IngestShard


def reingested(
    source: Source, out: Path, remarks: frozenset[str] = frozenset()
) -> dict[str, tuple[list[int], LabelMap]]:
    """Image labels and label map of each image, by the id in the source; it has these remarks alone."""
    summary = IngestShard(out, len(source.class_names), decode_mask=source.decode_mask)(source.rows, 0)
    assert summary.errors == []
    assert {remark for _, _, remark, _ in summary.remarks} == remarks
    reader = ShardReader(out)
    rows = [reader.read(k) for k in range(len(reader))]
    return {row["image_id"]: (row["image_labels"], decode_mask(row["mask"])) for row in rows}


def classes_in(label_map: LabelMap) -> list[int]:
    return [label - 1 for label in np.unique(label_map).tolist() if 0 < label < 255]


@pytest.mark.parametrize("polygons", [False, True], ids=["rle", "polygons"])
def test_coco(export, labelled, names_of, tmp_path: Path, polygons: bool) -> None:
    out = export("coco", *(["--polygons"] if polygons else []))
    source = read_coco(out / "images" / "train", out / "annotations" / "instances_train.json")
    assert source.class_names == ["cat", "traffic light", "Ünïcode: <x> & 'y'"]
    found = reingested(source, tmp_path / "again")
    files = {Path(row.path).stem: row.image_id for row in source.rows}
    assert len(found) == len(labelled.label_maps)
    for image_id, name in names_of(out).items():
        expected = labelled.label_maps[image_id]
        labels, label_map = found[files[name]]
        # COCO has no ignored pixels; instances don't overlap.
        np.testing.assert_array_equal(label_map, np.where(expected == 255, 0, expected))
        assert labels == classes_in(expected)


def test_voc(export, labelled, names_of, tmp_path: Path) -> None:
    out = export("voc")
    source = read_voc(out, "train")
    # labelmap.txt can't hold a colon in a name.
    assert source.class_names == ["cat", "traffic light", "Ünïcode <x> & 'y'"]
    found = reingested(source, tmp_path / "again")
    assert len(found) == len(labelled.label_maps)
    for image_id, name in names_of(out).items():
        labels, label_map = found[name]
        np.testing.assert_array_equal(label_map, labelled.label_maps[image_id])
        assert labels == classes_in(label_map)


def test_label_studio(export, labelled, tmp_path: Path) -> None:
    source = read_label_studio(export("label-studio") / "tasks.json")
    assert source.class_names == ["cat", "traffic light", "Ünïcode: <x> & 'y'"]
    found = reingested(source, tmp_path / "again", frozenset({"labels from predictions"}))
    assert set(found) == set(labelled.label_maps)
    for image_id, expected in labelled.label_maps.items():
        labels, label_map = found[image_id]
        # Brush regions have no ignored pixels; instances don't overlap.
        np.testing.assert_array_equal(label_map, np.where(expected == 255, 0, expected))
        assert labels == classes_in(expected)
