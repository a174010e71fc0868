"""Large images in tiles: the label map is nearly that of one large view, and small objects are found.

The segmenter tells a few colours, from 8 x 8 pixels: it is exact without training.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ray_wsss.config import PredictConfig
from ray_wsss.data.images import apply_orientation, decode_mask
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.segmenter import SegmenterSpec
from ray_wsss.stages.predict import Predictor
from ray_wsss.stages.predict_folder import FolderPredictor, MaskFolder, PrepareFiles

COLOURS = np.array([[40, 40, 40], [220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)
"""Colour of each label; 0 is background."""
TILES = PredictConfig(max_side_px=128, tile_px=128, tile_overlap=32)


class Colours(nn.Module):
    """Logits (B, 4, h, w) of cells of 8 x 8 pixels: minus the distance from each label's colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        colours = torch.from_numpy(COLOURS).float().div(255)[:, :, None, None]
        distance = (images[:, None] - colours).abs().sum(2)
        return -8 * F.avg_pool2d(distance, 8, ceil_mode=True)


class Position(nn.Module):
    """Logits of two labels: where a cell lies in the tile, from 0 to 1, and 0.5 plus the brightness."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = F.avg_pool2d(images[:, :1], 8, ceil_mode=True)
        across = torch.linspace(0, 1, cells.shape[-1]).expand_as(cells)
        return torch.cat([across, 0.5 + cells], 1)


def predictor_of(model: nn.Module, config: PredictConfig, classes: int = 3) -> Predictor:
    spec: Any = SimpleNamespace(class_names=tuple("abc"[:classes]))
    assert "class_names" in SegmenterSpec.__dataclass_fields__
    takes_any_size: Any = SimpleNamespace(multiple=1)
    model.backbone = takes_any_size
    return Predictor(model, spec, config, "cpu")  # pyright: ignore[reportArgumentType]


def paint(hw: tuple[int, int], side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image with squares at random places, and its labels."""
    rng, truth = np.random.default_rng(0), np.zeros(hw, np.uint8)
    for k in range(12):
        y, x = (int(rng.integers(0, most - side)) for most in hw)
        truth[y : y + side, x : x + side] = 1 + k % 3
    return COLOURS[truth], truth


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
@pytest.mark.parametrize("hw", [(336, 416), (112, 512)])
def test_tiles_are_nearly_one_large_view(hw: tuple[int, int], scales: tuple[float, ...]) -> None:
    pixels, truth = paint(hw, 40)
    config = replace(TILES, scales=scales, flip=len(scales) > 1)
    found = predictor_of(Colours(), config)(pixels)
    whole = predictor_of(Colours(), replace(config, max_side_px=512, tile_px=None, tile_overlap=None))(pixels)
    assert (found.dtype, found.shape) == (np.uint8, hw)
    assert (found != whole).mean() < 0.01
    assert (found != truth).mean() < 0.05


def test_small_objects_are_found() -> None:
    pixels, truth = paint((600, 900), 16)
    found = predictor_of(Colours(), TILES)(pixels)
    shrunk = predictor_of(Colours(), replace(TILES, tile_px=None, tile_overlap=None))(pixels)
    of_objects = truth > 0
    assert (found == truth)[of_objects].mean() > 0.65
    assert (found == truth)[~of_objects].mean() > 0.99
    assert (shrunk == truth)[of_objects].mean() < 0.1


def test_scores_are_averaged_where_tiles_overlap() -> None:
    """A tile's left part falls short of the other label and its right part exceeds it; between two tiles,
    the nearer to its own middle counts more."""
    pixels = np.zeros((64, 224), np.uint8)[..., None].repeat(3, 2)
    label = predictor_of(Position(), TILES, classes=1)(pixels)
    row = label[32]
    # Tiles are 0 to 128 and 96 to 224. Label 0 wins where a tile's position exceeds 0.5.
    assert set(row[:60]) == set(row[120:156]) == {1}
    assert set(row[68:100]) == set(row[164:]) == {0}
    (change,) = np.flatnonzero(np.diff(row[70:150])) + 71
    assert change == pytest.approx(112, abs=3)


def test_a_few_labels_at_a_time_give_the_same() -> None:
    pixels, _ = paint((336, 416), 40)
    for config in (TILES, replace(TILES, scales=(1.0, 0.75))):
        little = replace(config, max_pixels_per_pass=336 * 416 // 16 // 32 + 1)
        found, same = (predictor_of(Colours(), c)(pixels) for c in (config, little))
        np.testing.assert_array_equal(found, same)


def test_images_no_larger_than_a_tile_are_as_without(segmenter_dir: Path) -> None:
    pixels = make_scene(1, 96, 128).image
    tiles, plain = (
        Predictor.load(segmenter_dir, c) for c in (TILES, replace(TILES, tile_px=None, tile_overlap=None))
    )
    np.testing.assert_array_equal(tiles(pixels), plain(pixels))


def test_a_folder_with_large_images(segmenter_dir: Path, tmp_path: Path) -> None:
    scene, exif = make_scene(2, 150, 200).image, Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene).save(tmp_path / "large.png", exif=exif)
    Image.fromarray(scene[:100, :120]).save(tmp_path / "small.png")
    Image.fromarray(scene).save(tmp_path / "whole.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-500])
    names = ["large.png", "small.png", "broken.jpg"]
    images = PrepareFiles(tmp_path, 128, tile_px=128)(names)
    assert [image.encoded is None for image in images] == [False, True, False]
    assert images[0].image_hw == (200, 150)
    folder = MaskFolder(tmp_path / "out", overlays=True)
    stage = FolderPredictor(segmenter_dir, TILES, folder)
    tally, failed = stage([f"{name[:-4]}.png" for name in names], images)
    assert (tally.images, tally.errors, [name for name, _ in failed]) == (2, 1, ["broken.jpg"])
    assert "truncated" in failed[0][1]
    upright = apply_orientation(scene, 6)
    for name, pixels in (("large.png", upright), ("small.png", scene[:100, :120])):
        mask = decode_mask(folder.mask(name).read_bytes())
        np.testing.assert_array_equal(mask, stage.predictor(pixels))
    assert not folder.mask("broken.png").exists()
    with Image.open(folder.overlay("large.png")) as overlay:
        assert overlay.size == (96, 128)
