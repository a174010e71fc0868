"""The overview picture and the table in the terminal."""

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ray_wsss.figures.metrics_table import metrics_table
from ray_wsss.figures.overview import (
    OverviewRow,
    class_colour,
    paint_labels,
    render_overview,
    save_overview,
)


def row(seed: int) -> OverviewRow:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (30, 40)).astype(np.uint8)
    label[:3] = 255
    return OverviewRow(
        image=rng.integers(0, 256, (30, 40, 3), dtype=np.uint8),
        cams={"CAM": rng.random((30, 40), np.float32), "CAM with CPM": rng.random((30, 40), np.float32)},
        points=[(0, 3.5, 4.5), (2, 40.0, 30.0)],
        label_maps={"pseudo label": label, "segmenter": label, "truth": np.zeros_like(label)},
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_overview_has_a_column_per_stage_and_a_row_per_image(tmp_path, rows):
    path = tmp_path / "overview.png"
    save_overview([row(k) for k in range(rows)], ["[red]", "$\\bad{$", "_under_score"], path)
    with Image.open(path) as image:
        columns = 1 + 2 + 1 + 3
        assert image.width == pytest.approx(150 * 1.35 * columns, abs=1)
        assert image.height == pytest.approx(150 * (1.35 * 30 / 40 * rows + 0.75), abs=1)
        pixels = np.asarray(image.convert("RGB"))
    edges = np.linspace(0, pixels.shape[1], columns + 1).astype(int)
    first_row = pixels[40:180]
    for left, right in pairwise(edges):  # no cell stayed empty
        assert (first_row[:, left:right] < 200).any(-1).mean() > 0.3
    legend = pixels[-45:]
    for class_index in range(3):
        near = np.abs(legend.astype(int) - class_colour(class_index)).sum(-1) < 12
        assert near.sum() > 50


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_row_without_a_cam_leaves_its_cell_empty(lacking):
    rows = [row(0), row(1)]
    del rows[lacking].cams["CAM with CPM"]
    pixels = render_overview(rows, ["a", "b", "c"])
    cells = np.linspace(0, pixels.shape[1], 7 + 1).astype(int)
    heights = (slice(50, 180), slice(210, 330))
    drawn = np.array(
        [
            [(pixels[height, left:right] < 200).any(-1).mean() > 0.3 for left, right in pairwise(cells)]
            for height in heights
        ]
    )
    expected = np.ones((2, 7), bool)
    expected[lacking, 2] = False
    np.testing.assert_array_equal(drawn, expected)


def test_overview_of_background_alone_needs_no_legend(tmp_path):
    empty = OverviewRow(
        image=np.zeros((8, 8, 3), np.uint8),
        cams={},
        points=[],
        label_maps={"pseudo label": np.zeros((8, 8), np.uint8)},
    )
    save_overview([empty], ["a"], tmp_path / "overview.png")
    assert (tmp_path / "overview.png").stat().st_size > 1000


def test_painted_labels():
    image = np.full((2, 2, 3), 100, np.uint8)
    painted = paint_labels(image, np.array([[0, 1], [2, 255]], np.uint8))
    assert (image == 100).all()
    assert (painted[0, 0] == 75).all()
    assert (painted[1, 1] == int(0.35 * 75 + 0.65 * 255)).all()
    for (y, x), class_index in {(0, 1): 0, (1, 0): 1}.items():
        np.testing.assert_allclose(painted[y, x], 0.35 * 75 + 0.65 * class_colour(class_index), atol=1)


def test_labels_painted_with_a_palette():
    image, label_map = np.full((1, 3, 3), 100, np.uint8), np.array([[0, 2, 255]], np.uint8)
    painted = paint_labels(image, label_map, np.arange(768, dtype=np.uint32).reshape(256, 3).astype(np.uint8))
    expected = [0.35 * 75 + 0.65 * value for value in (6, 7, 8)]
    np.testing.assert_allclose(painted[0, 1], expected, atol=1)
    assert (painted[0, 2] == int(0.35 * 75 + 0.65 * 255)).all()


def test_class_colours_repeat_after_ten():
    assert len({tuple(class_colour(c)) for c in range(10)}) == 10
    assert (class_colour(13) == class_colour(3)).all()


def printed(metrics) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(metrics_table(metrics))
    return buffer.getvalue()


def test_table():
    metrics = {
        "segmenter": {
            "miou": 0.5,
            "iou": {"background": 0.9, "[red]": None, "[/b]dog": 0.1, "gone": None},
            "images": 7,
        },
        "cam_best": {
            "miou": 0.4321,
            "threshold": 0.3,
            "iou": {"background": 0.8, "[red]": 0.25, "[/b]dog": None, "gone": None},
            "images": 7,
        },
    }
    text = printed(metrics)
    lines = {line.split("│")[1].strip(): line.split("│")[2:4] for line in text.splitlines() if "│" in line}
    assert [cell.strip() for cell in lines["mean"]] == ["43.2", "50.0"]
    assert [cell.strip() for cell in lines["[red]"]] == ["25.0", "-"]
    assert [cell.strip() for cell in lines["[/b]dog"]] == ["-", "10.0"]
    assert [cell.strip() for cell in lines["images"]] == ["7", "7"]
    assert "gone" not in lines
    assert "0.30" in text
    assert text.index("CAM, best threshold"[:8]) < text.index("segmenter")


@pytest.mark.parametrize("metrics", [{}, {"data": {"dataset": "d"}}, {"later_measure": {"miou": 1.0}}])
def test_a_table_without_a_known_measure_is_empty(metrics):
    assert metrics_table(metrics).row_count == 0
    printed(metrics)


def test_a_table_of_measures_with_different_classes():
    one = {"miou": 0.5, "images": 7, "iou": {"background": 0.9, "cat": 0.2}}
    other = {"miou": 0.6, "images": 7, "iou": {"background": 0.8, "dog": 0.3}}
    for metrics in ({"pseudo_label": one, "segmenter": other}, {"segmenter": one, "pseudo_label": other}):
        lines = [[cell.strip() for cell in line.split("│")[1:4]] for line in printed(metrics).splitlines()]
        classes = {line[0]: line[1:] for line in lines if line and line[0] in ("cat", "dog")}
        swapped = "pseudo_label" in list(metrics)[1:]
        assert classes["cat"] == (["-", "20.0"] if swapped else ["20.0", "-"])
        assert classes["dog"] == (["30.0", "-"] if swapped else ["-", "30.0"])
