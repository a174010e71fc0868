"""One classifier step: every loss by its slow account, and shares of a batch that add up to the whole."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import default_collate

from ray_wsss.config import AugmentConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.training.classifier import ClassifierStep
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.host_plan import collate
from ray_wsss.training.loop import split_batch

AUGMENT = AugmentConfig(long_side_px=(40, 80), crop_px=64, jitter_probability=0, grey_probability=0)
CHANGES = {
    "cpm.warmup_iters": 3,
    "cpm.tau": 0.3,
    "cpm.min_distance_px": 4,
    "classifier.ssc_temperature": 0.5,
    "classifier.loss_weights.ssc": 0.3,
    "classifier.loss_weights.cpm": 2.0,
}


@pytest.fixture(scope="module")
def made(make_views) -> dict[str, Path]:
    return make_views("int8")


@pytest.fixture(scope="module")
def batch(scene_dataset, made) -> dict:
    """Eight crops with more or less padding; the segment map of one is empty."""
    crops = TrainingCrops(scene_dataset, list(range(14)), num_classes=6, augment=AUGMENT, seed=3, **made)
    batch = default_collate([crops[(k, k)] for k in range(8)])
    batch["segments"][5] = 0
    assert 0.3 < batch["inside"].float().mean() < 0.95
    return batch


@pytest.fixture(params=["crop", "image"])
def recipe(request) -> Recipe:
    return override(PRESETS["demo"], CHANGES | {"cpm.view": request.param})


@pytest.fixture
def model(make_classifier):
    return make_classifier(tuple("abcdef"))


def run_step(recipe, cpm, model, batch: dict, iteration: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A step of one worker in one pass."""
    step = ClassifierStep(recipe, cpm)
    return step(model, batch, step.counts(batch), iteration)


def test_the_parts_and_their_sum(recipe, model, batch, tiny_sam):
    cpm = Cpm(SamEncoder(tiny_sam), recipe.cpm)
    total, parts = run_step(recipe, cpm, model, batch, iteration=3)
    assert list(parts) == ["cls", "ssc", "cpm"]
    assert_close(total, parts["cls"] + 0.3 * parts["ssc"] + 2 * parts["cpm"])

    output, labels = model(batch["image"]), batch["image_labels"]
    assert_close(parts["cls"], F.binary_cross_entropy(output.logits.sigmoid(), labels))
    activation = model.to_class_maps(output.features).relu()
    cam = activation / (activation.amax((2, 3), keepdim=True) + 1e-5) * labels[:, :, None, None]
    cam = F.interpolate(cam, (64, 64), mode="bilinear")
    logits = torch.cat([1 - cam.amax(1, keepdim=True), cam], 1) / recipe.cpm.temperature
    per_pixel = F.cross_entropy(logits, cpm(model, batch).long(), reduction="none")
    assert_close(parts["cpm"], per_pixel[batch["inside"]].mean())

    directions = F.normalize(F.interpolate(output.features, (64, 64), mode="bilinear"), dim=1)
    losses = []
    for pixels, ids in zip(directions.flatten(2), batch["segments"].flatten(1)):
        names = ids[ids > 0].unique()
        if len(names):
            means = torch.stack([pixels[:, ids == n].mean(1) for n in names])
            scores = (F.normalize(means, dim=1) @ pixels[:, ids > 0]).T / 0.5
            losses.append(F.cross_entropy(scores, torch.searchsorted(names, ids[ids > 0]), reduction="none"))
    assert_close(parts["ssc"], torch.cat(losses).mean())


def test_what_is_off_is_no_part(recipe, model, batch, tiny_sam):
    cpm = Cpm(SamEncoder(tiny_sam), recipe.cpm)
    assert list(run_step(recipe, cpm, model, batch, iteration=2)[1]) == ["cls", "ssc"]
    plain = {name: value for name, value in batch.items() if name != "segments"}
    assert list(run_step(recipe, cpm, model, plain, iteration=2)[1]) == ["cls"]
    assert list(run_step(recipe, None, model, plain, iteration=99)[1]) == ["cls"]


@pytest.mark.parametrize("images", [2, 4])
def test_the_mean_over_passes_and_workers_is_the_gradient_of_the_whole_batch(
    recipe, model, batch, tiny_sam, images
):
    step = ClassifierStep(recipe, Cpm(SamEncoder(tiny_sam), recipe.cpm))

    def gradient_of(part: dict, counts: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, parts = step(model, part, counts, iteration=5)
        (gradient,) = torch.autograd.grad(total, model.to_features.weight)
        return gradient, {name: value.detach() for name, value in parts.items()}

    whole, whole_parts = gradient_of(batch, step.counts(batch))
    parts = list(split_batch(batch, images))
    assert len(parts) == 8 // images
    mean_counts = {name: count / len(parts) for name, count in step.counts(batch).items()}
    results = [gradient_of(part, mean_counts) for part in parts]
    assert_close(torch.stack([gradient for gradient, _ in results]).mean(0), whole, atol=1e-5, rtol=1e-4)
    for name, value in whole_parts.items():
        assert_close(torch.stack([losses[name] for _, losses in results]).mean(), value)


def test_mixed_precision_is_close_and_leaves_losses_in_full_precision(recipe, model, batch, tiny_sam):
    mixed = override(recipe, {"classifier.precision": "bf16"})
    exact, rounded = (
        run_step(r, Cpm(SamEncoder(tiny_sam), r.cpm, bf16=r is mixed), model, batch, iteration=3)[1]
        for r in (recipe, mixed)
    )
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        assert_close(rounded[name], value, atol=0.02, rtol=0.05)
        assert rounded[name] != value


@pytest.fixture
def made_batch(scene_dataset, made):
    """Makes the same crops again, of which some images are said to have none of the classes."""
    crops = TrainingCrops(scene_dataset, list(range(14)), num_classes=6, augment=AUGMENT, seed=3, **made)

    def make(empty: tuple[int, ...], chosen: tuple[int, ...] = tuple(range(8))) -> dict:
        items = [crops[(k, k)] for k in chosen]
        for k, item in zip(chosen, items):
            if k in empty:
                item["image_labels"] = torch.zeros(6)
        return collate(items)

    return make


def test_images_without_a_class_are_negatives_and_no_part_of_cpm(recipe, model, made_batch, tiny_sam):
    """CPM's loss and gradient are those of the other images alone."""
    cpm = Cpm(SamEncoder(tiny_sam), recipe.cpm)
    found = []
    for batch in (made_batch((1, 4)), made_batch((), (0, 2, 3, 5, 6, 7))):
        parts = run_step(recipe, cpm, model, batch, iteration=3)[1]
        (gradient,) = torch.autograd.grad(parts["cpm"], model.to_class_maps.weight, retain_graph=True)
        found.append((parts["cpm"], gradient))
        logits = model(batch["image"]).logits
        expected = F.binary_cross_entropy(logits.sigmoid(), batch["image_labels"])
        assert_close(parts["cls"], expected)
    assert_close(found[0][0], found[1][0])
    assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-3)
    assert found[0][1].any()


def test_a_batch_without_any_class(recipe, model, made_batch, tiny_sam):
    batch = made_batch(tuple(range(8)))
    cpm = Cpm(SamEncoder(tiny_sam), recipe.cpm)
    assert not cpm(model, batch).any()
    total, parts = run_step(recipe, cpm, model, batch, iteration=3)
    (gradient,) = torch.autograd.grad(total, model.to_class_maps.weight)
    assert parts["cpm"] == 0
    assert parts["ssc"] > 0
    assert total.isfinite()
    assert gradient.isfinite().all()
    expected = F.binary_cross_entropy(model(batch["image"]).logits.sigmoid(), torch.zeros(8, 6))
    assert_close(parts["cls"], expected)
