"""One segmenter step: shares of a batch add up to the whole, however unevenly its pixels are labelled."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss.models.store import load_segmenter
from ray_wsss.training.loop import split_batch
from ray_wsss.training.segmenter import SegmenterStep


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    """Eight crops, of which one has no label at all, and the others fewer and fewer labelled pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (8, 32, 32), generator=generator, dtype=torch.uint8)
    for k in range(8):
        labels[k, : 4 * k] = 255
    labels[3] = 255
    return {"image": torch.rand(8, 3, 32, 32, generator=generator), "pseudo_label": labels}


@pytest.fixture(params=[(), ("weight",), ("weight", "pixel_weight")], ids=["even", "images", "pixels"])
def weighed(request, batch) -> dict[str, Any]:
    """The batch, with weights of its images and pixels or without."""
    weights = {
        "weight": torch.tensor([1.0, 3, 0.5, 2, 1, 1, 4, 0.1]),
        "pixel_weight": torch.rand(8, 32, 32, generator=torch.Generator().manual_seed(1)),
    }
    return batch | {name: weights[name] for name in request.param}


@pytest.fixture(scope="module")
def model(segmenter_dir):
    """In eval mode, since the batch norm of the head would see only a share of the batch."""
    return load_segmenter(segmenter_dir)[0]


def test_the_loss_is_the_mean_over_all_labelled_pixels(model, weighed):
    batch = weighed
    step = SegmenterStep()
    loss, parts = step(model, batch, step.counts(batch), 0)
    per_pixel = F.cross_entropy(
        F.interpolate(model(batch["image"]), (32, 32), mode="bilinear"),
        batch["pseudo_label"].long().clamp(max=6),
        reduction="none",
    )
    weight = (
        batch.get("pixel_weight", torch.ones(8, 32, 32)) * batch.get("weight", torch.ones(8))[:, None, None]
    )
    weight = weight * (batch["pseudo_label"] != 255)
    assert_close(loss, (per_pixel * weight).sum() / weight.sum())
    assert parts["seg"] is loss


@pytest.mark.parametrize("images", [1, 2, 4])
def test_the_mean_over_passes_and_workers_is_the_gradient_of_the_whole_batch(model, weighed, images):
    batch, step = weighed, SegmenterStep()

    def gradient_of(part: dict, counts: dict) -> tuple[torch.Tensor, torch.Tensor]:
        loss, _ = step(model, part, counts, 0)
        (gradient,) = torch.autograd.grad(loss, model.head.weight)
        return gradient, loss.detach()

    whole, whole_loss = gradient_of(batch, step.counts(batch))
    parts = list(split_batch(batch, images))
    mean_counts = {name: count / len(parts) for name, count in step.counts(batch).items()}
    gradients, losses = zip(*(gradient_of(part, mean_counts) for part in parts))
    assert_close(torch.stack(gradients).mean(0), whole, atol=1e-5, rtol=1e-4)
    assert_close(torch.stack(losses).mean(), whole_loss)


def test_the_rim_of_labels_is_not_learned_from(model, batch):
    labels = torch.zeros(8, 32, 32, dtype=torch.uint8)
    labels[:, 8:20, 10:] = 3
    step = SegmenterStep(rim_px=2)
    images = {"image": batch["image"]}
    loss, _ = step(model, images | {"pseudo_label": labels}, step.counts({"pseudo_label": labels}), 0)
    kept = labels.clone()
    kept[:, 6:22, 8:] = 255
    kept[:, 10:18, 12:] = 3
    plain = SegmenterStep()
    expected, _ = plain(model, images | {"pseudo_label": kept}, plain.counts({"pseudo_label": kept}), 0)
    assert_close(loss, expected)


def test_a_batch_without_a_labelled_pixel_has_no_loss(model, weighed):
    batch = weighed | {"pseudo_label": torch.full((8, 32, 32), 255, dtype=torch.uint8)}
    step = SegmenterStep()
    assert step(model, batch, step.counts(batch), 0)[0] == 0
