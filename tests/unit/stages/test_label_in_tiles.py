"""Large images in tiles: small objects are found as at their own size, and seams don't show.

The classifier of most tests knows the emblems by their colour: it is exact without training. SAM is the tiny
one.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import peak_local_max
from skimage.measure import label as connected_components
from torch import nn
from torch.nn import functional as F

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.images import decode_mask
from ray_wsss.data.scenes import EMBLEM_RGB, _paint_background, _paint_object
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata, write_table_atomically
from ray_wsss.errors import UserError
from ray_wsss.models.backbone import Backbone
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.promptable.encoder import load_encoder
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.resize import resize_map, shrink
from ray_wsss.ops.tiles import TileGrid, cells_hw, enlarge_part
from ray_wsss.report.gallery_source import ChosenImage, GallerySource
from ray_wsss.report.survey import survey
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages, pack_images, unpack_images
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.label_images import ImageLabeller
from ray_wsss.stages.tiles.cams import TiledCams, find_tile_peaks, tiled_cams
from ray_wsss.stages.tiles.label import TileLabeller
from ray_wsss.stages.tiles.masks import TileMask, TileMasks, TilePrompt

SAM = SamConfig(name="tiny", precision="fp32")
CONFIG = LabelConfig(scales=(1.0,), flip=False, tile_px=256, tile_overlap=64)
CROP_PX = 256
RADIUS_PX = 66
"""Radius of an object's body, about. Its emblem is 40 px wide, about."""


@dataclass(frozen=True)
class Painted:
    """An object of a large scene."""

    class_index: int
    corner_yx: tuple[int, int]
    """Upper left corner of the crop that the masks are of."""
    body: NDArray[np.bool_]
    emblem: NDArray[np.bool_]

    @property
    def at(self) -> tuple[slice, slice]:
        """The crop around the object, as an index into the scene."""
        top, left = self.corner_yx
        return slice(top, top + CROP_PX), slice(left, left + CROP_PX)

    def holds(self, point_xy: Sequence[float]) -> bool:
        """Whether a point of the scene lies on the object."""
        y, x = int(point_xy[1]) - self.corner_yx[0], int(point_xy[0]) - self.corner_yx[1]
        return 0 <= y < CROP_PX and 0 <= x < CROP_PX and bool(self.body[y, x])


def paint_scene(
    hw: tuple[int, int], centres_yx: Sequence[tuple[int, int]], classes: Sequence[int]
) -> tuple[NDArray[np.uint8], list[Painted]]:
    """An image (H, W, 3) of generated ground, and its objects."""
    rng = np.random.default_rng(0)
    ground = _paint_background(rng, 500, 500)
    block = np.concatenate([ground, ground[::-1]])  # mirrored, so that there are no edges
    block = np.concatenate([block, block[:, ::-1]], axis=1).astype(np.uint8)
    image = np.tile(block, (-(-hw[0] // 1000), -(-hw[1] // 1000), 1))[: hw[0], : hw[1]].copy()
    painted = []
    for (y, x), class_index in zip(centres_yx, classes, strict=True):
        top, left = (min(max(0, c - CROP_PX // 2), most - CROP_PX) for c, most in zip((y, x), hw))
        at = slice(top, top + CROP_PX), slice(left, left + CROP_PX)
        canvas = image[at].astype(np.float32)
        body, _, emblem = _paint_object(rng, canvas, class_index, (y - top, x - left), RADIUS_PX)
        canvas += rng.normal(0, 3, canvas.shape)
        image[at] = np.clip(canvas, 0, 255)
        painted.append(Painted(class_index, (top, left), body, emblem))
    return image, painted


class Colours(nn.Module):
    """Features of 8 x 8 pixels: how close they are to the colour of each emblem, and a little of anything."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        colours = torch.tensor(EMBLEM_RGB, dtype=torch.float32).div(255)[:, :, None, None]
        distance = (images[:, None] - colours).abs().amax(2)
        closeness = (0.3 - distance).relu() / 0.3 + 0.02 * images.mean(1, keepdim=True)
        return [F.avg_pool2d(closeness, 8, ceil_mode=True)]


class Greyness(nn.Module):
    """One feature of 8 x 8 pixels: their brightness."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(images.mean(1, keepdim=True), 8, ceil_mode=True)]


def classifier_of(features: nn.Module, classes: int, weight: float = 1.0) -> Classifier:
    """A classifier whose class maps are the features times ``weight``."""
    model = Classifier(Backbone(features, [classes], (0.0,) * 3, (1.0,) * 3, strides=[1]), classes, classes)
    nn.init.eye_(model.to_features.weight[:, :, 0, 0])
    nn.init.eye_(model.to_class_maps.weight[:, :, 0, 0])
    with torch.no_grad():
        model.to_class_maps.weight *= weight
    return model.eval()


@pytest.fixture(scope="module")
def colours() -> Classifier:
    """A classifier that knows the emblems by their colour, and faintly sees every class everywhere."""
    return classifier_of(Colours(), len(EMBLEM_RGB))


@pytest.fixture(scope="module")
def label_in_tiles(colours: Classifier) -> Any:
    """Labels an image: (pixels, classes, config) -> label map and segments by class."""
    encoder = load_encoder(SAM, torch.device("cpu"))

    def work(pixels, classes, config=CONFIG) -> tuple[NDArray[Any], dict[int, dict[str, Any]]]:
        label, segments = TileLabeller(colours, encoder, config, SAM)(pixels, classes, Tally())
        hw = pixels.shape[:2]
        return label, {s["class_index"]: s | {"mask": decode_rle(s["rle"], hw)} for s in segments}

    return work


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def count_parts(mask: NDArray[np.bool_]) -> int:
    """Number of connected parts, without specks."""
    areas = np.bincount(np.asarray(connected_components(mask)).ravel())[1:]
    return int((areas > 100).sum())


CENTRES = [(130, 140), (150, 520), (330, 250), (420, 640), (560, 130), (590, 430)]
CLASSES = [0, 1, 5, 0, 1, 0]


def test_small_objects_as_in_crops_of_their_own(label_in_tiles) -> None:
    image, painted = paint_scene((704, 790), CENTRES, CLASSES)
    label, segments = label_in_tiles(image, (0, 1, 5))
    assert label.shape == (704, 790)
    for each in painted:
        found = segments[each.class_index]
        assert sum(each.holds(point) for point in found["points_xy"]) >= 1
        _, alone = label_in_tiles(image[each.at], (each.class_index,))
        mask = found["mask"][each.at]
        assert iou(mask, each.body) > 0.9
        assert iou(mask, alone[each.class_index]["mask"]) > 0.9
        assert iou(label[each.at] == each.class_index + 1, each.body) > 0.9
    # Nothing lies where no object is, although most tiles have none of a class.
    for class_index, found in segments.items():
        own = [each for each in painted if each.class_index == class_index]
        assert all(any(each.holds(point) for each in own) for point in found["points_xy"])
        assert found["area"] == found["mask"].sum() <= 1.1 * sum(each.body.sum() for each in own)
        assert count_parts(found["mask"]) == len(own)
    # Alone, such a tile has a point wherever the ground is brightest.
    _, ground = label_in_tiles(image[0:256, 250:450], (3,))
    assert ground[3]["points_xy"]


@pytest.mark.parametrize("overlap", [8, 64])
@pytest.mark.parametrize("offset", [-60, -25, 0, 30, 64])
def test_an_object_across_seams_becomes_one(label_in_tiles, overlap: int, offset: int) -> None:
    """The seams of two axes pass through it; at an overlap of 8 px no tile sees all of it."""
    seam = 256 - overlap // 2
    image, (each,) = paint_scene((448, 448), [(seam + offset, seam + offset // 2)], [0])
    config = replace(CONFIG, tile_overlap=overlap)
    label, segments = label_in_tiles(image, (0,), config)
    assert count_parts(segments[0]["mask"]) == 1
    assert iou(segments[0]["mask"][each.at], each.body) > 0.85
    assert segments[0]["area"] <= 1.1 * each.body.sum()
    assert np.array_equal(label == 1, segments[0]["mask"])


def test_peaks_are_those_of_the_whole_image() -> None:
    generator = torch.Generator().manual_seed(3)
    grid, config = TileGrid((450, 390), 128, 24), replace(CONFIG, tile_px=128, tile_overlap=24, tau=0.6)
    coarse = torch.rand(1, 3, 30, 26, generator=generator)
    cam = F.interpolate(coarse, cells_hw(grid.image_hw), mode="bicubic")[0].clamp(min=0)
    cam /= cam.amax((1, 2), keepdim=True)
    cam[2] *= 0.5  # no value above tau: the global maximum stands in
    cams = TiledCams(cam, cam, (0, 1, 2), grid.image_hw)
    whole = enlarge_part(cam, grid.image_hw, slice(None), slice(None)).numpy()
    found: dict[int, set[tuple[int, int]]] = {0: set(), 1: set(), 2: set()}
    for at, n, points in find_tile_peaks(cams, grid, config):
        for y, x in points.tolist():
            assert grid.owner(y, x) == at
            found[n].add((y, x))
    for n in (0, 1):
        expected = peak_local_max(whole[n], min_distance=10, threshold_abs=0.6, exclude_border=10)  # pyright: ignore[reportArgumentType]
        assert len(expected) > 20
        assert found[n] == {(y, x) for y, x in expected.tolist()}
    assert found[2] == {divmod(int(whole[2].argmax()), 390)}
    never = find_tile_peaks(cams, grid, replace(config, keep_global_max="never"))
    assert not [n for _, n, _ in never if n == 2]
    always = find_tile_peaks(cams, grid, replace(config, keep_global_max="always"))
    of_first = {(y, x) for _, n, points in always for y, x in points.tolist() if n == 0}
    assert of_first == found[0] | {divmod(int(whole[0].argmax()), 390)}


def test_a_class_without_activation_is_guessed_at_its_class_map() -> None:
    image = np.full((300, 300, 3), 200, np.uint8)
    image[200:208, 96:104] = 10  # where a class map of minus the brightness is highest
    config = replace(CONFIG, tile_px=128, tile_overlap=16)
    cams = tiled_cams(classifier_of(Greyness(), 1, -1.0), image, (0,), config)
    assert cams.cam.max() == 0
    ((_, _, ((y, x),)),) = find_tile_peaks(cams, TileGrid((300, 300), 128, 16), config)
    assert (abs(y - 204) <= 4, abs(x - 100) <= 4) == (True, True)


def test_stitched_cams_are_nearly_those_of_one_view(colours: Classifier) -> None:
    """Far from seams and at them: the colours' classifier sees 8 px around a pixel only."""
    image, _ = paint_scene((400, 520), [(130, 140), (250, 300)], [0, 2])
    config = replace(CONFIG, tile_px=200, tile_overlap=40, scales=(1.0, 2.0), flip=True)
    in_tiles = tiled_cams(colours, image, (0, 2), config)
    whole = tiled_cams(colours, image, (0, 2), replace(config, tile_px=520, tile_overlap=None))
    assert in_tiles.cam.shape == (2, 100, 130)
    torch.testing.assert_close(in_tiles.cam, whole.cam, atol=0.02, rtol=0)
    assert (in_tiles.cam.amax((1, 2)) > 0.999).all()
    assert in_tiles.highest().shape == (400, 520)


def test_masks_are_merged_and_scored_by_area() -> None:
    rng, grid = np.random.default_rng(4), TileGrid((150, 203), 64, 16)
    masks, merged, areas, scores = TileMasks(grid), np.zeros((150, 203), bool), [], []
    for at, tile in enumerate(grid):
        for class_at in (0, 1):
            mask, of_mask = rng.random(tile.hw) < 0.02 * at, tuple(rng.random(3).tolist())
            prompt = TilePrompt(at, class_at, np.zeros((1, 2), np.int64))
            masks.add([TileMask.pack(prompt, mask, of_mask)])
            if class_at == 1:
                for y, x in product(range(tile.hw[0]), range(tile.hw[1])):
                    merged[tile.y.start + y, tile.x.start + x] |= mask[y, x]
                areas.append(mask.sum())
                scores.append(of_mask)
    assert np.array_equal(masks.merge(1), merged)
    assert masks.scores(1) == pytest.approx(np.average(scores, axis=0, weights=areas))
    assert masks.scores(7) == (0.0, 0.0, 0.0)


def test_a_continuation_must_agree() -> None:
    known, seen = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    known[20:40, :16], seen[:, :16] = True, True
    prompt = TilePrompt(0, 0, np.array([[30, 8]]), known, seen)
    longer = np.zeros((64, 64), bool)
    longer[20:40] = True  # the same, and goes on
    assert prompt.agrees(longer)
    assert not prompt.agrees(~longer)
    assert not prompt.agrees(np.ones((64, 64), bool))  # the ground
    assert TilePrompt(0, 0, np.array([[30, 8]])).agrees(~longer)


# The label stage

LARGE_HW = (150, 210)
STAGE = LabelConfig(scales=(1.0,), flip=False, max_side_px=128, tau=0.3, min_distance_px=4)


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def row(name: str, image: bytes, hw: tuple[int, int], labels: Any, orientation: int = 1) -> dict[str, Any]:
    return {"image_id": name, "image": image, "orientation": orientation, "height": hw[0], "width": hw[1]} | {
        "image_labels": labels
    }


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    large, small = paint_scene((256, 256), [(128, 128)], [0])[0][:150, :210], np.zeros((60, 80, 3), np.uint8)
    small[10:40, 20:50] = 200
    return [
        row("small", encoded(small), (60, 80), [0, 3]),
        row("large", encoded(large), LARGE_HW, [1, 4]),
        row("turned", encoded(large.swapaxes(0, 1)), LARGE_HW, [1, 4], orientation=5),
        row("broken", encoded(large, "JPEG")[:4000], LARGE_HW, [1]),
        row("unknown", encoded(large), LARGE_HW, None),
        row("none", encoded(large), LARGE_HW, []),
    ]


def run_stage(rows: list[dict[str, Any]], folder: Path, classifier: Path, config: LabelConfig) -> Any:
    table = pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA)
    write_table_atomically(table, folder / "shards" / "part-00000.parquet")
    (chunk,) = plan_chunks(folder)
    prepare = PrepareImages(
        max_side_px=config.max_side_px, tile_px=config.tile_px, frame=InputFrame(IMAGE_SIZE_PX)
    )
    return SamLabeller(config, SAM, classifier)(unpack_images(pack_images(prepare(chunk))))


def test_a_chunk_of_all_kinds(rows, classifier_dir: Path, tmp_path: Path) -> None:
    table, tally = run_stage(rows, tmp_path, classifier_dir, replace(STAGE, tile_px=96))
    small, large, turned, broken, unknown, none = table.to_pylist()
    assert (tally.images, tally.errors, tally.unknown) == (5, 1, 1)
    assert tally.masks == 6
    assert tally.prompts == sum(len(s["points_xy"]) for r in table.to_pylist() for s in r["segments"] or ())
    assert "truncated JPEG" in broken["error"]
    for found in (large, turned, unknown, none):
        assert (found["error"], found["height"], found["width"]) == (None, *LARGE_HW)
        assert decode_mask(found["pseudo_label"]).shape == LARGE_HW
    assert [s["class_index"] for s in small["segments"]] == [0, 3]
    assert [s["class_index"] for s in large["segments"]] == [1, 4]
    assert large["segments"] == turned["segments"]
    assert large["pseudo_label"] == turned["pseudo_label"]
    assert set(np.unique(decode_mask(unknown["pseudo_label"]))) == {255}
    assert set(np.unique(decode_mask(none["pseudo_label"]))) == {0}
    label = decode_mask(large["pseudo_label"])
    masks = {s["class_index"]: decode_rle(s["rle"], LARGE_HW) for s in large["segments"]}
    assert np.array_equal(label > 0, masks[1] | masks[4])
    for class_index, mask in masks.items():
        assert mask[label == class_index + 1].all()


def test_images_no_larger_than_a_tile_are_as_without(rows, classifier_dir: Path, tmp_path: Path) -> None:
    plain, tiles = (replace(STAGE, max_side_px=256, tile_px=tile_px) for tile_px in (None, 212))
    without = run_stage(rows, tmp_path / "plain", classifier_dir, plain)[0]
    assert run_stage(rows, tmp_path / "tiles", classifier_dir, tiles)[0].equals(without)


def test_a_large_image_is_sent_as_its_file(rows, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows[:3], schema=IMAGE_SCHEMA)
    write_table_atomically(table, tmp_path / "shards" / "part-00000.parquet")
    prepare = PrepareImages(max_side_px=128, tile_px=96, frame=InputFrame(IMAGE_SIZE_PX))
    small, large, turned = prepare(plan_chunks(tmp_path)[0])
    assert (small.encoded, large.pixels) == (None, None)
    assert large.encoded == rows[1]["image"]
    assert np.array_equal(large.decode(), turned.decode())
    thin = prepare.prepare("thin", np.zeros((1, 97, 3), np.uint8), (0,))
    assert thin.image_hw == (1, 97)
    with pytest.raises(ValueError, match=r"^4000x1 pixels are too thin"):
        PrepareImages(max_side_px=4000, tile_px=1024, frame=InputFrame(256)).prepare(
            "thinner", np.zeros((1, 4000, 3), np.uint8), (0,)
        )


@pytest.mark.parametrize("prompts", ["box", "boxes", "mask"])
@pytest.mark.parametrize("confidence", ["logit", "iou"])
def test_other_kinds_of_prompts(
    classifier_dir: Path, prompts: Any, confidence: Any, rows, tmp_path: Path
) -> None:
    config = replace(STAGE, tile_px=96, prompts=prompts, confidence=confidence)
    ((found,), _) = (run_stage(rows[1:2], tmp_path, classifier_dir, config)[0].to_pylist(), 0)
    assert found["error"] is None
    assert any(segment["area"] for segment in found["segments"])


def test_the_gallery_shows_the_cams_of_tiles(rows, classifier_dir: Path, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows[:2], schema=IMAGE_SCHEMA)
    write_table_atomically(table, tmp_path / "shards" / "part-00000.parquet")
    names = tuple("abcdef")
    counts: dict[str, Any] = {"images": 2, "unlabelled": 0, "errors": 0, "has_masks": False}
    DatasetMetadata(class_names=names, source="folder", **counts).save(tmp_path)
    config = replace(STAGE, tile_px=96)
    gallery = GallerySource(
        *(tmp_path, None),
        classifier=classifier_dir,
        config=config,
        segmenter=None,
        predictions=None,
        failed=[],
    )
    chosen = [ChosenImage(image=image, group="") for image in survey(tmp_path, None).images]
    small, large = gallery(chosen)
    assert small.cam is not None
    assert small.cam.shape == (60, 80)
    expected = tiled_cams(load_classifier(classifier_dir)[0], large.pixels, (1, 4), config).highest()
    assert large.cam is not None
    np.testing.assert_array_equal(large.cam, expected)


def test_embeddings_of_whole_images_are_refused(scene_dataset: Path, tmp_path: Path) -> None:
    from ray_wsss.cluster.stages.compare_prompts import compare_prompts
    from ray_wsss.cluster.stages.label import run_label

    recipe = override(PRESETS["demo"], {"label.tile_px": 64})
    run: Any = {"resources": Resources(), "cluster": Cluster(), "out": tmp_path / "out"}
    inputs: Any = {"dataset": scene_dataset, "classifier": tmp_path, "embeddings": tmp_path}
    with pytest.raises(
        UserError, match=r"holds embeddings of whole images; expected none with label\.tile_px"
    ):
        run_label(recipe, **inputs, **run)
    with pytest.raises(UserError, match=r"label\.tile_px is 64; expected None: prompts are compared without"):
        compare_prompts(recipe, **inputs, **run)
    assert not (tmp_path / "out").exists()


def test_single_images(classifier_dir: Path, rows) -> None:
    settings = {"label.tile_px": 96, "label.max_side_px": 128, "label.tau": 0.3}
    labeller = ImageLabeller(classifier_dir, preset="demo", settings=settings, device="cpu")
    pixels = PreparedImage(image_id="", encoded=rows[1]["image"]).decode()
    picture = labeller(pixels, classes=["b", "e"])
    assert picture.label_map.shape == picture.cam.shape == LARGE_HW
    assert picture.class_names == ("b", "e")
    tiles = [labeller(pixels[tile.at], threshold=1.0).probabilities for tile in TileGrid(LARGE_HW, 96, 12)]
    expected = {name: max(of_tile[name] for of_tile in tiles) for name in "abcdef"}
    assert picture.probabilities == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_ten_objects_in_48_megapixels(label_in_tiles) -> None:
    """Each is found as in a crop of its own; in the scene shrunk to SAM's size, none is."""
    rng, hw = np.random.default_rng(5), (6000, 8000)
    cells = rng.choice(20 * 26, 10, replace=False)  # of 300 px, so that objects lie apart
    centres = [tuple(150 + 300 * int(k) + int(rng.integers(-20, 20)) for k in divmod(c, 26)) for c in cells]
    image, painted = paint_scene(hw, centres, [0, 1, 5, 0, 1, 5, 0, 1, 5, 0])  # pyright: ignore[reportArgumentType]
    emblems_px = [np.ptp(np.argwhere(each.emblem), axis=0).max() + 1 for each in painted]
    assert np.median(emblems_px) == pytest.approx(40, abs=3)
    _, found = label_in_tiles(image, (0, 1, 5))
    small = shrink(image, IMAGE_SIZE_PX)
    _, of_small = label_in_tiles(small, (0, 1, 5), replace(CONFIG, tile_px=IMAGE_SIZE_PX))
    for each in painted:
        segment = found[each.class_index]
        assert any(each.holds(point) for point in segment["points_xy"])
        assert iou(segment["mask"][each.at], each.body) > 0.9
        _, alone = label_in_tiles(image[each.at], (each.class_index,))
        assert iou(segment["mask"][each.at], alone[each.class_index]["mask"]) > 0.9
        lost = resize_map(of_small[each.class_index]["mask"].astype(np.uint8), hw)[each.at] > 0
        assert iou(lost, each.body) < 0.5
    for class_index, segment in found.items():
        own = [each for each in painted if each.class_index == class_index]
        assert all(any(each.holds(point) for each in own) for point in segment["points_xy"])
        assert segment["area"] <= 1.1 * sum(each.body.sum() for each in own)
