"""Training on stored features: what they are, how crops are cut from them, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_sessions import Recorder
from scipy import ndimage
from torch.testing import assert_close

from ray_wsss.benchmark.frozen import WAYS, FrozenBenchmark
from ray_wsss.cluster.stages.extract_features import run_extract_features
from ray_wsss.cluster.stages.train_classifier import run_train_classifier
from ray_wsss.config import AugmentConfig, FeaturesConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources, Workers
from ray_wsss.data.features import FeatureCrops, FeatureViews
from ray_wsss.data.images import decode_image
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import write_errors
from ray_wsss.errors import UserError
from ray_wsss.models import backbone as backbone_module
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.first_weights import begin_classifier
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.geometry import Geometry
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.stages.cams import find_cams, find_cams_of_cells
from ray_wsss.stages.features.extract import FeatureExtractor
from ray_wsss.stages.features.stored import views_of
from ray_wsss.training.classifier import count_trainable, train_classifier
from ray_wsss.training.crops import TrainingCrops

NAMES = tuple("abcdef")
WHOLE = AugmentConfig(long_side_px=(64, 64), crop_px=64, jitter_probability=0, grey_probability=0)
"""Crops that are the whole image of 64 px, or its mirror image."""
RECIPE: Recipe = override(
    PRESETS["demo"],
    {
        "classifier.freeze_stages": "all",
        "classifier.max_iters": 4,
        "classifier.batch_size": 4,
        "classifier.log_every": 1,
        "classifier.feature_dim": 16,
        "cpm.warmup_iters": 2,
        "cpm.view": "image",
        "cpm.min_distance_px": 4,
    },
)
RECIPE = replace(RECIPE, classifier=replace(RECIPE.classifier, augment=WHOLE))


def extract(dataset: Path, out: Path, recipe: Recipe = RECIPE, **changes) -> Path:
    run_extract_features(
        recipe,
        features=FeaturesConfig(**changes),
        dataset=dataset,
        out=out,
        resources=Resources(actors=0),
        cluster=Cluster(),
    )
    return out


@pytest.fixture(scope="module")
def features(scene_dataset, tmp_path_factory) -> Path:
    return extract(scene_dataset, tmp_path_factory.mktemp("features") / "both", flip=True)


@pytest.fixture
def in_fp32(monkeypatch):
    """Where the hardware computes in bf16, a frozen backbone would differ from the stored features."""
    monkeypatch.setattr(backbone_module, "has_bf16", lambda device: False)


def record(dataset: Path, recipe: Recipe, out: Path, **views: Any) -> list[dict[str, float]]:
    session = Recorder(out)
    train_classifier(recipe, dataset, session, **views)
    return [{k: v for k, v in m.items() if k.startswith("loss_")} for m in session.metrics]


@pytest.mark.usefixtures("in_fp32")
def test_losses_are_those_of_the_frozen_backbone(scene_dataset, features, make_views, tmp_path):
    """Where a crop is the whole image or its mirror image: classification, SSC and CPM, step by step."""
    views = make_views("fp16")
    live = record(scene_dataset, RECIPE, tmp_path / "live", **views)
    stored = record(scene_dataset, RECIPE, tmp_path / "stored", features=features, **views)
    assert live[-1].keys() == {"loss_cls", "loss_ssc", "loss_cpm"}
    assert live[0] != live[-1]
    for ours, expected in zip(stored, live, strict=True):
        assert ours == pytest.approx(expected, rel=2e-3)


def test_the_stored_maps_are_the_backbones():
    """At every side, mirrored or not, for images of several sizes; an image that can't be read is named."""
    torch.manual_seed(3)
    shapes = [(60, 90), (90, 60), (60, 90), (31, 40)]
    pixels = [np.random.default_rng(k).integers(0, 256, (*hw, 3), np.uint8) for k, hw in enumerate(shapes)]
    images = [PreparedImage(image_id=str(k), image_hw=p.shape[:2], pixels=p) for k, p in enumerate(pixels)]
    images.insert(1, PreparedImage(image_id="bad", error="cut short"))
    config = FeaturesConfig(sides_px=(90, 48), flip=True)
    table, tally = FeatureExtractor(config, RECIPE.classifier, NAMES)(images)
    assert (tally.images, tally.errors) == (4, 1)
    rows = table.to_pylist()
    assert [row["image_id"] for row in rows] == ["0", "bad", "1", "2", "3"]
    assert rows[1]["error"] == "cut short"
    backbone = begin_classifier(RECIPE.classifier, NAMES)[0].backbone.eval()
    for row, image in zip([rows[0], *rows[2:]], pixels):
        seen = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        expected = []
        for side in (90, 48):
            size = [max(32, round(s * side / max(image.shape))) for s in image.shape[:2]]
            scaled = torch.nn.functional.interpolate(seen, size, mode="bilinear", antialias=True)
            with torch.no_grad():
                expected += [backbone(scaled)[0], backbone(scaled.flip(-1))[0]]
        assert (row["height"], row["width"]) == image.shape[:2]
        assert row["shape"] == [number for part in expected for number in part.shape]
        found = np.frombuffer(row["embedding"], np.float16).astype(np.float32)
        whole = torch.cat([part.flatten() for part in expected])
        assert_close(torch.from_numpy(found), whole, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("hw", "top", "left"), [((40, 56), 3, 11), ((24, 64), -20, 17), ((90, 31), 22, -6)])
def test_cells_of_a_crop(hw, top, left, flip):
    """scipy interpolates between the cells' centres; a mirrored crop is the crop of the mirrored image."""
    cells = torch.rand(3, 5, 7)
    geometry = Geometry(scaled_hw=hw, top=top, left=left, crop_px=40, flip=flip)
    cut, inside = geometry.crop_cells(cells, 5)
    at = np.arange(5) * 8 + 4.0
    across = 40 - at if flip else at
    y, x = np.meshgrid((at + top) / hw[0], (across + left) / hw[1], indexing="ij")
    assert torch.equal(inside, torch.from_numpy((y > 0) & (y < 1) & (x > 0) & (x < 1)))
    assert inside.sum() > 0
    places = [y * 5 - 0.5, x * 7 - 0.5]
    for found, cell in zip(cut, cells):
        expected = ndimage.map_coordinates(cell.numpy(), places, order=1, mode="nearest")
        assert_close(found, torch.from_numpy(expected).float() * inside, rtol=1e-4, atol=1e-5)
    again, _ = geometry.mirrored().crop_cells(cells.flip(-1), 5)
    assert_close(again, cut, rtol=1e-4, atol=1e-5)


def test_the_nearest_side_and_the_mirrored_map_are_taken():
    views = FeatureViews(folder=Path("f"), sides_px=(256, 64, 128), flip=True, stride=8)
    sides = {64: 1, 80: 1, 91: 2, 128: 2, 180: 2, 182: 0, 500: 0}
    assert {side: views.nearest(side, flip=False)[0] // 2 for side in sides} == sides
    assert views.nearest(120, flip=False) == (4, False)
    assert views.nearest(120, flip=True) == (5, True)
    assert replace(views, flip=False).nearest(120, flip=True) == (2, False)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_crops_have_the_geometry_of_crops_of_pixels(scene_dataset, tmp_path, dtype):
    """The same seed cuts the same places, without reading an image; of the right one of several maps."""
    folder = extract(scene_dataset, tmp_path / "features", sides_px=(48, 80), dtype=dtype)
    augment = replace(WHOLE, long_side_px=(40, 90))
    shared = {"num_classes": 6, "augment": augment, "seed": 5}
    rows = list(range(14))
    of_pixels = TrainingCrops(scene_dataset, rows, **shared)
    of_features = TrainingCrops(scene_dataset, rows, features=views_of(folder), **shared)
    backbone = begin_classifier(RECIPE.classifier, NAMES)[0].backbone.eval()
    reader = ShardReader(scene_dataset)
    for draw in range(6):
        expected, found = of_pixels[draw, 2 * draw], of_features[draw, 2 * draw]
        assert torch.equal(found["inside"], expected["inside"])
        assert torch.equal(found["image_labels"], expected["image_labels"])
        assert "image" not in found
        generator = torch.Generator().manual_seed(5 * 1_000_003 + draw)
        geometry = Geometry.sample(
            (64, 64), long_side_px=(40, 90), crop_px=64, flip=True, generator=generator
        )
        side = 48 if max(geometry.scaled_hw) < (48 * 80) ** 0.5 else 80
        row = reader.read(2 * draw, ["image", "orientation"])
        image = torch.from_numpy(decode_image(row["image"], row["orientation"])).permute(2, 0, 1)[None] / 255
        scaled = torch.nn.functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
        with torch.no_grad():
            cells, inside = geometry.crop_cells(backbone(scaled)[0], 8)
        assert found["cells_inside"] == inside.float().mean()
        least = 0.02 if dtype == "fp16" else 0.05
        assert (found["cells"] - cells).abs().max() < least * cells.abs().max()


def test_cams_of_cells_are_those_of_the_image(make_classifier):
    model: Classifier = make_classifier()
    images, labels = torch.rand(2, 3, 64, 80), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    config = replace(RECIPE.label, affinity_steps=2)
    expected = find_cams(model, images, labels, scales=(1.0,), flip=False, refine=config)
    with torch.no_grad():
        cells = model.backbone(images)
    found = find_cams_of_cells(model, cells, labels, (64, 80), refine=config)
    assert_close(found.cam, expected.cam)
    assert torch.equal(found.class_index, expected.class_index)
    assert torch.equal(found.image_index, expected.image_index)


def test_images_without_features_are_left_out(scene_dataset, features, tmp_path):
    folder = tmp_path / "features"
    shutil.copytree(features, folder)
    left_out = ShardReader(scene_dataset).image_ids[3]
    write_errors([(left_out, "cut short")], folder)
    assert count_trainable(PLAIN, scene_dataset, None, features) == 14
    assert count_trainable(PLAIN, scene_dataset, None, folder) == 13
    with pytest.raises(ValueError, match="has no features of this image"):
        FeatureCrops(views_of(features)).read("nobody")


def train(dataset: Path, out: Path, recipe: Recipe, features: Path) -> None:
    run_train_classifier(
        recipe, dataset=dataset, out=out, features=features, workers=Workers(workers=0), cluster=Cluster()
    )


PLAIN = override(RECIPE, {"cpm.enabled": False, "classifier.max_iters": 1})


def test_a_trained_classifier_is_like_any_other(scene_dataset, features, tmp_path):
    """It has its backbone, and its manifest notes whose features it has seen."""
    train(scene_dataset, tmp_path / "out", PLAIN, features)
    notes = (tmp_path / "out" / "manifest.json").read_text()
    assert '"features.backbone.sha256"' in notes
    backbone = begin_classifier(PLAIN.classifier, NAMES)[0].backbone.state_dict()
    trained = load_classifier(tmp_path / "out")[0].backbone.state_dict()
    assert trained.keys() == backbone.keys()
    assert all(torch.equal(value, backbone[name]) for name, value in trained.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier.freeze_stages": 1}, "classifier.freeze_stages is 1; expected all with --features"),
        ({"classifier.backbone": "resnet_small"}, "holds features with classifier.backbone resnet_tiny; exp"),
        ({"classifier.seed": 9}, "holds features of a backbone with other weights"),
        ({"cpm.enabled": True, "cpm.view": "crop"}, "cpm.view is crop; expected image with --features"),
        ({"cpm.enabled": True, "cpm.colour_steps": 2}, "cpm.colour_steps is 2; expected 0"),
    ],
)
def test_trainings_that_do_not_fit_the_features_are_refused(
    scene_dataset, features, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        train(scene_dataset, tmp_path / "out", override(PLAIN, changes), features)


def test_features_of_another_data_set_are_refused(write_dataset, features, tmp_path):
    other = write_dataset(tmp_path, 4)
    with pytest.raises(UserError, match=r"which is another data set than .* or was other then"):
        train(other, tmp_path / "out", PLAIN, features)


def test_the_benchmark_measures_each_way(scene_dataset, features):
    benchmark = FrozenBenchmark(recipe=PLAIN, dataset=scene_dataset, features=features, steps=1)
    for way in WAYS:
        seconds, memory = benchmark.measure(way)
        assert seconds > 0
        assert memory >= 0
