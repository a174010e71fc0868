"""A thousand classes: no tensor over all of them at the size of images or CAMs, and the same results."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.images import decode_mask
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.classifier import Classifier, ClassifierSpec
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.store import save_model
from ray_wsss.ops.cpm_loss import cpm_loss
from ray_wsss.ops.metrics import ThresholdCounts
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.stages.cams import cams_of
from ray_wsss.stages.evaluate import count_cams
from ray_wsss.stages.label import SamLabeller
from ray_wsss.training.classifier import ClassifierStep
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.segmenter import sum_cross_entropy

CLASSES = 997
CELLS = 8 * 8
"""Cells of the CAM of a crop of 64 pixels, at an output stride of 8."""
NAMES = tuple(map(str, range(CLASSES)))


class Largest(TorchDispatchMode):
    """Finds the largest tensor, forward and backward, that has an axis of about all classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.axes, self.numel, self.seen = {classes, classes + 1, classes + 2}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and self.axes & set(leaf.shape):
                self.seen += 1
                self.numel = max(self.numel, leaf.numel())
        return out


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    changes = {"cpm.warmup_iters": 0, "cpm.tau": 0.3, "cpm.min_distance_px": 4, "cpm.view": "crop"}
    return override(PRESETS["demo"], changes)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [make_scene(seed, 64, 64).image for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def batch(images) -> dict[str, Any]:
    """Three crops: with two classes, with one, and with none."""
    image_labels = torch.zeros(3, CLASSES)
    image_labels[0, [3, 990]] = 1
    image_labels[1, 500] = 1
    crops = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    return {"image": crops, "image_labels": image_labels, "inside": torch.ones(3, 64, 64, dtype=torch.bool)}


@pytest.fixture
def model(make_classifier: Callable[..., Classifier]) -> Classifier:
    return make_classifier(NAMES)


def dense_loss(
    recipe: Recipe, model: Classifier, batch: dict[str, Any], labels: torch.Tensor
) -> torch.Tensor:
    """CPM's loss from the maps of all classes."""
    activation = model.to_class_maps(model(batch["image"]).features).relu()
    cam = (
        activation / (activation.amax((2, 3), keepdim=True) + 1e-5) * batch["image_labels"][:, :, None, None]
    )
    cam = F.interpolate(cam, (64, 64), mode="bilinear")
    logits = torch.cat([1 - cam.amax(1, keepdim=True), cam], 1) / recipe.cpm.temperature
    per_pixel = F.cross_entropy(logits, labels.long(), reduction="none")
    return per_pixel[batch["image_labels"].any(1)].mean()


def test_a_step_has_the_loss_and_gradient_of_all_class_maps(recipe, model, batch, tiny_sam):
    cpm = Cpm(SamEncoder(tiny_sam), recipe.cpm)
    labels = cpm(model, batch)
    assert labels.dtype == torch.int32
    assert {4, 501, 991} & set(labels.unique().tolist())
    assert not labels[2].any()
    step = ClassifierStep(recipe, cpm)
    _, parts = step(model, batch, step.counts(batch), 0)
    weights = [model.to_class_maps.weight, model.to_features.weight]
    found = torch.autograd.grad(parts["cpm"], weights)
    loss = dense_loss(recipe, model, batch, labels)
    assert_close(parts["cpm"], loss)
    for ours, dense in zip(found, torch.autograd.grad(loss, weights)):
        assert dense.any()
        assert_close(ours, dense, atol=1e-6, rtol=1e-3)


def test_a_step_makes_no_maps_of_all_classes(recipe, model, batch, tiny_sam):
    step = ClassifierStep(recipe, Cpm(SamEncoder(tiny_sam), recipe.cpm))
    with Largest(CLASSES) as largest:
        total, _ = step(model, batch, step.counts(batch), 0)
        total.backward()
    assert largest.seen > 5  # the logits, and the weights' gradients
    assert largest.numel < CLASSES * CELLS
    with Largest(CLASSES) as largest:  # the test finds what it looks for
        dense_loss(recipe, model, batch, torch.zeros(3, 64, 64))
    assert largest.numel > 3 * CLASSES * 64 * 64


def test_classes_without_maps_count_as_zero_cams():
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 4, (2, 4, 5), generator=generator)
    zeros = torch.zeros(2, 40, 4, 5, dtype=torch.float64)
    for temperature in (1.0, 0.2):
        dense = cpm_loss(torch.cat([cam, zeros], 1), labels, temperature, ignore=-1)
        sparse = cpm_loss(cam, labels, temperature, other_classes=40, ignore=-1)
        assert_close(sparse, dense)
        assert_close(torch.autograd.grad(sparse, cam), torch.autograd.grad(dense, cam))
        assert not torch.isclose(sparse, cpm_loss(cam, labels, temperature, ignore=-1))


def prepared(images, image_labels) -> list[PreparedImage]:
    return [
        PreparedImage(image_id=str(k), image_hw=(64, 64), pixels=pixels, image_labels=classes)
        for k, (pixels, classes) in enumerate(zip(images, image_labels))
    ]


@pytest.fixture
def load(tmp_path) -> Callable[[Classifier], SamLabeller]:
    """A labeller with a network, saved under its class names."""

    def labeller(model: Classifier) -> SamLabeller:
        names = NAMES[: model.num_classes]
        spec = ClassifierSpec(class_names=names, backbone="resnet_small", output_stride=8, feature_dim=16)
        folder = tmp_path / str(len(names))
        save_model(model, spec, folder)
        config = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0,), max_side_px=64)
        return SamLabeller(config, SamConfig(name="tiny", precision="fp32"), folder)

    return labeller


def test_labels_of_many_classes_are_those_of_few_in_16_bits(load, images, make_classifier):
    """Three classes of a large classifier, with the weights of those of a small one."""
    few = make_classifier(NAMES[:3])
    many = make_classifier(NAMES)
    state = many.state_dict() | {k: v for k, v in few.state_dict().items() if "to_class_maps" not in k}
    state["to_class_maps.weight"][[254, 700, 996]] = few.to_class_maps.weight.detach()
    many.load_state_dict(state)
    small = load(few)(prepared(images, [(0, 1, 2), (1,), None]))[0].to_pylist()
    with Largest(CLASSES) as largest:
        large = load(many)(prepared(images, [(254, 700, 996), (700,), None]))[0].to_pylist()
    assert largest.numel < CLASSES * CELLS
    new = np.zeros(256, np.uint16)
    new[[1, 2, 3, 255]] = 255, 701, 997, 65_535
    for one, other in zip(small, large):
        expected, found = decode_mask(one["pseudo_label"], 3), decode_mask(other["pseudo_label"], CLASSES)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, new[expected])
        assert [s["rle"] for s in other["segments"]] == [s["rle"] for s in one["segments"]]
    assert len(np.unique(decode_mask(small[0]["pseudo_label"], 3))) > 1
    assert (decode_mask(large[2]["pseudo_label"], CLASSES) == 65_535).all()


def test_counts_of_cams_hold_only_the_classes_of_an_image(images, make_classifier):
    model = make_classifier(NAMES)
    config = LabelConfig(scales=(1.0,), flip=False, max_side_px=64)
    cams = cams_of(model, images[:1], [(3, 990)], config)
    truth = np.zeros((64, 64), np.uint16)
    truth[10:30, 20:50], truth[:5] = 991, 65_535
    thresholds = [k / 100 for k in range(1, 100)]
    counts = count_cams(cams, truth, 1 + CLASSES, thresholds)
    assert len(counts.cells) == 2 * 2 * 100  # of a hundred million
    best, which = cams.cam.max(0)
    label = torch.tensor([4, 991])[which]
    every = ThresholdCounts.from_scores(
        best, label, torch.from_numpy(truth.astype(np.int32)), 1 + CLASSES, thresholds, 65_535
    )
    assert len(every.cells) > len(counts.cells)
    assert torch.equal(every.merged().cells, counts.merged().cells)
    assert torch.equal(every.merged().pixels, counts.merged().pixels)
    assert counts.pixels.sum() == (truth != 65_535).sum()


def test_the_segmenters_loss_a_few_images_at_a_time():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 301, 4, 4, generator=generator, requires_grad=True)
    labels = torch.randint(0, 301, (5, 32, 32), generator=generator, dtype=torch.int32)
    labels[:, :7] = 65_535
    resized = F.interpolate(logits, (32, 32), mode="bilinear")
    whole = F.cross_entropy(resized, labels.long(), ignore_index=65_535, reduction="sum")
    (expected,) = torch.autograd.grad(whole, logits)
    with Largest(300) as largest:
        loss = sum_cross_entropy(logits, labels, at_once=2 * 301 * 32 * 32)
        (found,) = torch.autograd.grad(loss, logits)
    assert largest.numel == 2 * 301 * 32 * 32
    assert_close(loss, whole)
    assert_close(found, expected)
    assert torch.equal(sum_cross_entropy(logits, labels), whole)
