"""Pictures and charts of the report."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from ray_wsss.figures.overview import class_colour
from ray_wsss.report.charts import HEIGHT, WIDTH, histogram, line_chart
from ray_wsss.report.pictures import (
    encode_heat,
    encode_labels,
    encode_outlines,
    encode_photo,
    report_palette,
)


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def rgba(url: str) -> np.ndarray:
    return np.asarray(decoded(url).convert("RGBA"))


def test_few_classes_have_the_overviews_colours_and_many_have_bright_ones() -> None:
    assert (report_palette(10)[10] == class_colour(9)).all()
    assert len({tuple(colour) for colour in report_palette(254).tolist()}) == 255
    assert report_palette(254)[1:].max(1).min() > 190


def test_labels_keep_their_colours_and_background_is_transparent() -> None:
    label_map = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    palette = report_palette(3)
    shown = rgba(encode_labels(label_map, palette, 256))
    assert (shown[label_map == 0, 3] == 0).all()
    assert (shown[label_map > 0, 3] == 255).all()
    for label in (1, 2, 3):
        assert (shown[label_map == label, :3] == palette[label]).all()
    assert (shown[label_map == 255, :3] == 255).all()


def test_a_small_picture_of_a_large_map_takes_few_bytes() -> None:
    label_map = np.zeros((480, 640), np.uint8)
    label_map[100:300, 200:500] = 12
    url = encode_labels(label_map, report_palette(80), 256)
    assert decoded(url).size == (256, 192)
    assert len(url) < 1200


def test_heat_grows_with_the_cam() -> None:
    cam = np.linspace(0, 1, 50, dtype=np.float32)[None].repeat(20, 0)
    alpha = rgba(encode_heat(cam))[10, :, 3].astype(int)
    assert alpha[0] == 0
    assert alpha[-1] == 255
    assert (np.diff(alpha) >= 0).all()
    brightness = rgba(encode_heat(cam))[10, :, :3].astype(int).sum(-1)
    assert brightness[-1] > 3 * brightness[5]


@pytest.mark.parametrize("side_px", [64, 300])
def test_outlines_are_the_mask_without_its_inside(side_px: int) -> None:
    mask = np.zeros((side_px, side_px), bool)
    mask[5:30, 10:40] = True
    mask[0:9, 0:12] = True
    shown = rgba(encode_outlines([(1, mask)], report_palette(3), 512))[..., 3] > 0
    inside = binary_erosion(mask, iterations=max(1, side_px // 128))
    np.testing.assert_array_equal(shown, np.logical_and(mask, np.logical_not(inside)))


def test_photos_shrink_and_never_grow() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 120, 3)).astype(np.uint8)
    assert decoded(encode_photo(pixels, 48)).size == (48, 24)
    assert decoded(encode_photo(pixels, 256)).size == (120, 60)


def test_curve_ends_where_its_values_do() -> None:
    chart = line_chart("loss", [20, 40, 60], [2.0, 0.5, 1.0])
    assert chart is not None
    points = [tuple(map(float, part.split())) for part in chart.path[1:].split("L")]
    assert points[-1] == chart.last_xy
    assert points[0][1] < points[2][1] < points[1][1]  # SVG counts downwards
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert chart.last == "1"
    assert line_chart("loss", [1, 2], [float("nan")] * 2) is None
    flat = line_chart("loss", [1.0], [0.0])
    assert flat is not None


def test_bars_are_as_high_as_their_counts() -> None:
    chart = histogram("score", "", [0, 3, 6, 1])
    heights = [bar.height for bar in chart.bars]
    assert heights[0] == 0
    np.testing.assert_allclose(heights[1] * 2, heights[2], atol=0.2)
    assert "0.50 to 0.75: 6" in [bar.text for bar in chart.bars]
    assert histogram("none", "", [0, 0]).bars[0].height == 0


def test_label_maps_of_many_classes() -> None:
    """A palette PNG of the labels that are there; ignored pixels are white."""
    palette = report_palette(1000)
    label_map = np.array([[0, 1, 255, 256], [1000, 65_535, 7, 0]], np.uint16)
    image = rgba(encode_labels(label_map, palette, 64))
    for (y, x), label in np.ndenumerate(label_map):
        colour = (255, 255, 255) if label == 65_535 else tuple(palette[label].tolist())
        red, green, blue, alpha = image[y, x].tolist()
        assert alpha == (0 if label == 0 else 255)
        assert label == 0 or (red, green, blue) == colour
    crowded = np.arange(400, dtype=np.uint16).reshape(20, 20)
    assert rgba(encode_labels(crowded, palette, 64)).shape == (20, 20, 4)
