from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import encode_mask
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata
from ray_wsss.stages.compare_prompts import (
    CASES,
    Pair,
    annotated_kinds,
    choose_examples,
    count_objects,
    measure_pairs,
    summarise,
)
from ray_wsss.stages.label import LABEL_SCHEMA

HW = (20, 30)


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def segment(class_index: int, mask: np.ndarray, points_xy: list[list[float]]) -> dict:
    return {"class_index": class_index, "points_xy": points_xy, "rle": encode_rle(mask)["counts"]}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two images, the second without truth; in the first class 0 twice, 1 once, 2 not in the labels."""
    truth = np.zeros(HW, np.uint8)
    truth[square(1, 1, 5) | square(10, 1, 5)] = 1
    truth[square(1, 15, 6)] = 2
    truth[square(12, 20, 4)] = 3
    truth[square(1, 21, 3)] = 255
    (tmp_path / "data").mkdir()
    rows = {"image_id": ["a", "b"], "mask": [encode_mask(truth), None]}
    pq.write_table(pa.table(rows), tmp_path / "data" / "0.parquet")
    return tmp_path / "data"


def write_labels(folder: Path, segments: list[dict]) -> Path:
    folder.mkdir()
    rows = [{"image_id": "a", "segments": segments}, {"image_id": "b", "segments": segments}]
    pq.write_table(pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), folder / "0.parquet")
    return folder


def test_pairs_and_cases(dataset: Path, tmp_path: Path) -> None:
    both, one, reaching_out = square(1, 1, 5) | square(10, 1, 5), square(1, 1, 5), square(1, 15, 8)
    peaks = [[16.5, 2.5], [18.5, 5.5], [29.0, 19.0]]
    points = write_labels(
        tmp_path / "points", [segment(0, both, [[2.5, 2.5]]), segment(1, reaching_out, peaks)]
    )
    box = write_labels(tmp_path / "box", [segment(0, one, []), segment(1, square(1, 15, 6), [])])
    pairs = list(measure_pairs(dataset, {"points": points, "box": box}, 4))
    assert [(p.image_id, p.class_index, p.objects, p.peaks) for p in pairs] == [
        ("a", 0, 2, 1),
        ("a", 1, 1, 2),
    ]
    assert [p.case for p in pairs] == [CASES[1], CASES[0]]
    assert pairs[0].iou == {"points": 1, "box": 0.5}
    # 8 x 8 pixels, of which 36 are right and 6 (two columns of three) are ignored.
    assert pairs[1].iou == {"points": pytest.approx(36 / (64 - 6)), "box": 1}
    assert summarise(pairs, ["points", "box"])["several objects"] == {
        "pairs": 1,
        "iou": {"points": 1.0, "box": 0.5},
    }
    assert summarise(pairs, ["box"])["all"] == {"pairs": 2, "iou": {"box": 0.75}}
    assert summarise([], ["box"])["all"] == {"pairs": 0, "iou": {"box": None}}


def test_masks_of_several_objects_count_together(dataset: Path, tmp_path: Path) -> None:
    points = write_labels(tmp_path / "points", [segment(0, square(1, 1, 5), [[2.5, 2.5]])])
    objects = [segment(0, square(1, 1, 5), []), segment(0, square(10, 1, 5), [])]
    boxes = write_labels(tmp_path / "annotated_boxes", objects)
    (pair,) = measure_pairs(dataset, {"points": points, "annotated_boxes": boxes}, 4)
    assert pair.iou == {"points": 0.5, "annotated_boxes": 1}


@pytest.mark.parametrize(
    ("objects", "kinds"),
    [
        ([None], []),
        ([{"box_xyxy": [1, 2, 3, 4], "iscrowd": True}], []),
        ([None, {"box_xyxy": [1, 2, 3, 4]}], ["annotated_boxes"]),
        ([{"points_xy": [[1, 2]], "point_labels": [1]}], ["annotated_points"]),
        (
            [{"box_xyxy": [1, 2, 3, 4]}, {"points_xy": [[1, 2]], "point_labels": [1]}],
            ["annotated_points", "annotated_boxes"],
        ),
    ],
)
def test_kinds_of_prompts_that_a_data_set_has(tmp_path: Path, objects: list, kinds: list[str]) -> None:
    rows = [
        {
            "image_id": str(k),
            "image": b"",
            "orientation": 1,
            "height": 9,
            "width": 9,
            "objects": each and [{"class_index": 0, **each}],
        }
        for k, each in enumerate(objects)
    ]
    table = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    (tmp_path / "shards").mkdir()
    pq.write_table(table, tmp_path / "shards/part-00000.parquet")
    DatasetMetadata(
        class_names=("a",),
        source="csv",
        images=len(rows),
        unlabelled=0,
        errors=0,
        has_masks=False,
        objects=len(rows),
    ).save(tmp_path)
    assert annotated_kinds(tmp_path) == kinds


def test_crumbs_are_no_objects() -> None:
    inside = np.zeros((100, 100), bool)
    inside[10:40, 10:40] = True
    inside[60, 60:70] = True
    assert count_objects(inside) == 1
    inside[60:63, 60:70] = True
    assert count_objects(inside) == 2
    assert count_objects(np.eye(100, dtype=bool)) == 1  # corners connect


def test_examples_are_chosen_by_what_is_in_them() -> None:
    def pair(name: str, objects: int, peaks: int, iou: float) -> Pair:
        return Pair(image_id=name, class_index=0, objects=objects, peaks=peaks, iou={"points": iou})

    pairs = [
        pair("a", 1, 1, 1),
        pair("b", 1, 2, 1),
        pair("c", 1, 3, 0),
        pair("d", 2, 1, 1),
        pair("e", 3, 0, 0),
    ]
    assert [p.image_id for p in choose_examples(pairs, 1)] == ["c", "e"]
    assert [p.image_id for p in choose_examples(pairs, 5)] == ["c", "b", "e", "d"]
