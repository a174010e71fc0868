"""The sizes at which the classifier sees images, wherever CAMs are made as labelling makes them."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ray_wsss.benchmark.naive import NaiveLabeller
from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import decode_image, encode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.scenes import make_scene
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata, write_table_atomically
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.models.store import load_classifier
from ray_wsss.report.gallery_source import ChosenImage, GallerySource
from ray_wsss.report.survey import survey
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.stages.cams import cams_of
from ray_wsss.stages.compare_prompts import ExampleMaker, Pair
from ray_wsss.stages.evaluate import CamEvaluator
from ray_wsss.stages.label import LABEL_SCHEMA, SamLabeller
from ray_wsss.stages.label_images import ImageLabeller
from ray_wsss.training.local_session import LocalSession
from ray_wsss.training.validation import CamValidation

SAM = SamConfig(name="tiny", precision="fp32")
CONFIG = LabelConfig(scales=(0.75, 1.0, 1.5), flip=False, max_side_px=160, tau=0.3, min_distance_px=4)
IMAGE_HW = (96, 128)
TRAINED_PX = 64
AT_TRAINED = [(36, 48), (48, 64), (72, 96)]
UNLIMITED = [(72, 96), (96, 128), (144, 192)]
Size = tuple[int, int]


@pytest.fixture(scope="module")
def trained(finish_classifier: Callable[[dict[str, Any]], Path]) -> Path:
    """A classifier whose training saw long sides of 48 to 64 px."""
    return finish_classifier({"classifier.augment.long_side_px": [48, TRAINED_PX]})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of 96 x 128 px with ground truth."""
    out = tmp_path_factory.mktemp("data") / "dataset"
    scene = make_scene(3, *IMAGE_HW)
    encoded = io.BytesIO()
    Image.fromarray(scene.image).save(encoded, "PNG")
    truth = np.zeros(IMAGE_HW, np.uint8)
    truth[20:60, 30:90] = 1
    row = {"image_id": "one", "image": encoded.getvalue(), "orientation": 1, "image_labels": [0, 2]}
    row |= {"height": IMAGE_HW[0], "width": IMAGE_HW[1], "mask": encode_mask(truth)}
    table = pa.Table.from_pylist([row], schema=IMAGE_SCHEMA)
    write_table_atomically(table, out / "shards" / "part-00000.parquet")
    DatasetMetadata(
        class_names=tuple("abcdef"), source="folder", images=1, unlabelled=0, errors=0, has_masks=True
    ).save(out)
    return out


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Size]:
    """Sizes of the images that classifiers get from here on."""
    sizes: list[Size] = []
    forward = Classifier.forward

    def record(self: Classifier, images: torch.Tensor, *classes: torch.Tensor) -> Any:
        sizes.append((images.shape[-2], images.shape[-1]))
        return forward(self, images, *classes)

    monkeypatch.setattr(Classifier, "forward", record)
    return sizes


def label_table(labeller: SamLabeller, dataset: Path) -> pa.Table:
    (chunk,) = plan_chunks(dataset)
    prepare = PrepareImages(max_side_px=labeller.config.max_side_px, frame=InputFrame(IMAGE_SIZE_PX))
    return labeller(prepare(chunk))[0]


def label(dataset: Path, classifier: Path, config: LabelConfig, tmp: Path) -> Size:
    (row,) = label_table(SamLabeller(config, SAM, classifier), dataset).to_pylist()
    return row["height"], row["width"]


def label_naively(dataset: Path, classifier: Path, config: LabelConfig, tmp: Path) -> Size:
    (chunk,) = plan_chunks(dataset)
    (row,) = NaiveLabeller(config, SAM, classifier, "cpu")(chunk)[0].to_pylist()
    return row["height"], row["width"]


def evaluate(dataset: Path, classifier: Path, config: LabelConfig, tmp: Path) -> Size:
    record = ShardReader(dataset).read(0)
    table = pa.Table.from_pylist([record], schema=IMAGE_SCHEMA)
    counts, images = CamEvaluator.load(classifier, config, 0.3).count(table)
    assert (counts.pixels.sum(), images) == (IMAGE_HW[0] * IMAGE_HW[1], 1)
    return IMAGE_HW


def show_gallery(dataset: Path, classifier: Path, config: LabelConfig, tmp: Path) -> Size:
    gallery = GallerySource(
        *(dataset, None),
        classifier=classifier,
        config=config,
        segmenter=None,
        predictions=None,
        failed=[],
    )
    (image,) = gallery([ChosenImage(image=survey(dataset, None).images[0], group="")])
    assert image.cam is not None
    return image.cam.shape


def draw_example(dataset: Path, classifier: Path, config: LabelConfig, tmp: Path) -> Size:
    segment = {"class_index": 0, "points_xy": [[40.5, 30.5]], "sam_score": 1.0, "stability_score": 1.0}
    segment |= {"cam_mean": 1.0, "area": 0, "rle": encode_rle(np.zeros(IMAGE_HW, bool))["counts"]}
    row = {"image_id": "one", "height": 96, "width": 128, "segments": [segment]}
    table = pa.Table.from_pylist([row], schema=LABEL_SCHEMA)
    write_table_atomically(table, tmp / "labels" / "part-00000.parquet")
    make = ExampleMaker(config, dataset=dataset, classifier=classifier, labels={"points": tmp / "labels"})
    pair = Pair(image_id="one", class_index=0, objects=1, peaks=1, iou={"points": 0.0})
    return make(pair).cam.shape


CONSUMERS: list[Callable[[Path, Path, LabelConfig, Path], Size]] = [
    *(label, label_naively, evaluate, show_gallery, draw_example)
]


@pytest.mark.parametrize("use", CONSUMERS)
def test_no_larger_than_in_training(
    use: Any, dataset: Path, trained: Path, seen: list[Size], tmp_path: Path
) -> None:
    assert use(dataset, trained, CONFIG, tmp_path) == IMAGE_HW
    assert seen == AT_TRAINED


@pytest.mark.parametrize("use", CONSUMERS)
def test_a_named_side_counts_more_than_training(
    use: Any, dataset: Path, trained: Path, seen: list[Size], tmp_path: Path
) -> None:
    assert use(dataset, trained, replace(CONFIG, classifier_side_px=32), tmp_path) == IMAGE_HW
    assert seen == [(32, 32), (32, 32), (36, 48)]  # no side is below 32 px, as ever
    seen.clear()
    use(dataset, trained, replace(CONFIG, classifier_side_px=128), tmp_path)
    assert seen == UNLIMITED


@pytest.mark.parametrize("use", CONSUMERS)
def test_without_a_manifest_there_is_no_limit(
    use: Any, dataset: Path, classifier_dir: Path, seen: list[Size], tmp_path: Path
) -> None:
    use(dataset, classifier_dir, CONFIG, tmp_path)
    assert seen == UNLIMITED


def test_single_images(trained: Path, seen: list[Size], caplog: pytest.LogCaptureFixture) -> None:
    settings = {f"label.{name}": getattr(CONFIG, name) for name in ("scales", "flip", "tau", "max_side_px")}
    labeller = ImageLabeller(trained, preset="demo", settings=settings, device="cpu")
    pixels = make_scene(3, *IMAGE_HW).image
    picture = labeller(pixels, threshold=0.0)
    assert picture.label_map.shape == picture.cam.shape == IMAGE_HW
    assert seen == [(48, 64), *AT_TRAINED, *AT_TRAINED]  # probabilities, labels, the CAM in the result
    assert caplog.text == ""
    ImageLabeller(trained, preset="demo", settings={"label.scales": (3.0,)}, device="cpu")
    assert caplog.text.count("label.scales has 3: ") == 1


def test_validation_sees_what_evaluate_will(
    dataset: Path, classifier_dir: Path, seen: list[Size], tmp_path: Path
) -> None:
    changes = {"classifier.augment.long_side_px": (48, TRAINED_PX), "label.max_side_px": 160}
    recipe: Recipe = override(PRESETS["demo"], changes)
    model, _ = load_classifier(classifier_dir)
    validation = CamValidation(recipe, dataset, dataset, None, torch.device("cpu"))
    assert 0 < validation.measure(model, LocalSession(tmp_path))["val_miou"] < 1
    assert validation.picture(model) is not None
    assert seen == [(48, 64)] * 2


@torch.no_grad()
def test_cams_of_a_smaller_view_against_plain_loops(dataset: Path, classifier_dir: Path) -> None:
    model, _ = load_classifier(classifier_dir)
    pixels = decode_image(ShardReader(dataset).read(0)["image"])
    config = replace(CONFIG, classifier_side_px=TRAINED_PX)
    cams = cams_of(model, [pixels], [[0, 2]], config)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    total = torch.zeros(2, *IMAGE_HW)
    for hw in AT_TRAINED:
        features = model(F.interpolate(image, hw, mode="bilinear", antialias=True)).features
        maps = model.to_class_maps(features)[:, [0, 2]]
        total += F.interpolate(maps.relu(), IMAGE_HW, mode="bilinear")[0]
    torch.testing.assert_close(cams.cam, total / (total.amax((1, 2), keepdim=True) + 1e-5))
    plain = cams_of(model, [pixels], [[0, 2]], CONFIG)
    assert (plain.cam - cams.cam).abs().max() > 0.05


def test_labels_of_small_images_stay_the_same(dataset: Path, trained: Path, classifier_dir: Path) -> None:
    """At a working size that training knew, the limit changes no bit."""
    config = replace(CONFIG, max_side_px=TRAINED_PX)
    with_limit, without = (
        label_table(SamLabeller(config, SAM, folder), dataset) for folder in (trained, classifier_dir)
    )
    assert with_limit.equals(without)
