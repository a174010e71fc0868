"""The training step asks a GPU nothing: run on one that has shapes and no values."""

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_gpu import REFUSED, FakeGpu, SourceChanged, fake_driver
from torch import Tensor

from ray_wsss.config import AugmentConfig, EncoderPrecision, LabelConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.ops.ssc import ssc_loss
from ray_wsss.stages.cams import find_cams
from ray_wsss.stages.evaluate import CamEvaluator
from ray_wsss.stages.point_prompts import find_prompts
from ray_wsss.training.classifier import ClassifierStep
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.host_plan import collate
from ray_wsss.training.loop import split_batch
from ray_wsss.training.validation import Sample


@pytest.fixture
def gpu(monkeypatch) -> FakeGpu:
    fake_driver(monkeypatch)
    # Autocast asks for bfloat16 on the GPU.
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    return FakeGpu()


def put_encoder(gpu: FakeGpu, sam: SegmentAnything, precision: EncoderPrecision = "fp32") -> SamEncoder:
    encoder = SamEncoder(deepcopy(sam), precision, batch_size=2)
    encoder.sam = gpu.put(encoder.sam)
    return encoder


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.max().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.__setitem__(x > 0, x[0, 0]),
        lambda x: x.cpu(),
        lambda x: torch.zeros(2).copy_(x[0, :2]),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[[0, 1]],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.zeros(3).to(x.device, non_blocking=True),
        lambda x: torch.zeros(3).pin_memory().to(x.device),
    ],
)
def test_what_stops_the_host_is_refused(gpu, waits):
    x = gpu.put(torch.ones(4, 3))
    with gpu, pytest.raises(REFUSED):
        waits(x)


@pytest.mark.parametrize(
    "goes_on",
    [
        lambda x: x[1:, None].masked_fill(x[1:, None] > 0, 2.0).sum(),
        lambda x: x[torch.zeros(3).long().pin_memory().to(x.device, non_blocking=True)],
        lambda x: x * torch.tensor(2.0) + torch.arange(3, device=x.device) + x.new_full((3,), 1.0),
        lambda x: torch.where(x > 0, x, 0.0).flatten().max(0).indices,
    ],
)
def test_what_does_not_stop_it_is_not_refused(gpu, goes_on):
    x = gpu.put(torch.ones(4, 3))
    with gpu:
        assert torch.ones(3).nonzero().tolist() == [[0], [1], [2]]  # on the CPU all is as ever
        assert goes_on(x).is_cuda


def test_memory_must_not_change_while_it_is_copied(gpu):
    pinned = torch.zeros(3).pin_memory()
    with pytest.raises(SourceChanged), gpu:
        pinned.to("cuda", non_blocking=True).add_(pinned.add_(1).sum())


CHANGES = {"cpm.warmup_iters": 0, "cpm.tau": 0.3, "cpm.min_distance_px": 4, "cpm.scales": (0.5, 1.0)}
AUGMENT = AugmentConfig(long_side_px=(40, 80), crop_px=64, jitter_probability=0, grey_probability=0)


@pytest.fixture(scope="module")
def made(make_views) -> dict[str, Path]:
    return make_views("int8")


def put_batch(gpu: FakeGpu, dataset: Path, made: dict[str, Any]) -> dict[str, Any]:
    crops = TrainingCrops(dataset, list(range(14)), num_classes=6, augment=AUGMENT, seed=3, **made)
    batch = collate([crops[(k, k)] for k in range(5)])
    return {name: gpu.put(value) for name, value in batch.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"view": "crop"},
        {"view": "crop", "mask_output": "best_iou", "confidence": "stability"},
        {"view": "image", "keep_global_max": "always"},
        {"view": "image", "keep_global_max": "never", "confidence": "iou"},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits(gpu, scene_dataset, made, make_classifier, tiny_sam, changes, precision):
    changes = {f"cpm.{name}": value for name, value in changes.items()} | {"classifier.precision": precision}
    recipe = override(PRESETS["demo"], CHANGES | changes)
    model, encoder = gpu.put(make_classifier(tuple("abcdef")).train()), put_encoder(gpu, tiny_sam)
    batch = put_batch(gpu, scene_dataset, made)
    cpm = Cpm(encoder, recipe.cpm, decode_batch_size=4, bf16=precision == "bf16")
    # Several images, some of them with several classes: several decoder calls.
    assert batch["plan"].image_labels.sum() > 4
    with gpu:
        step = ClassifierStep(recipe, cpm)
        counts = step.counts(batch)
        losses = [step(model, part, counts, iteration=0) for part in split_batch(batch, 3)]
    total, parts = losses[-1]
    assert list(parts) == ["cls", "ssc", "cpm"]
    assert total.requires_grad
    assert gpu.ops > 1000


def test_encoding_never_waits(gpu, tiny_sam, monkeypatch):
    """Images of several sizes and a batch that is not full; streams, which need a driver, are left out."""
    encoder = put_encoder(gpu, tiny_sam, "bf16")
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: None)
    images = [make_scene(seed, *hw).image for seed, hw in enumerate([(64, 96), (96, 64), (300, 200)])]
    with gpu:
        (embeddings,) = encoder(images).maps
    assert (embeddings.shape, embeddings.dtype) == ((3, 64, 16, 16), torch.float32)
    assert embeddings.device.type == "cuda"
    assert gpu.ops > 100


def test_without_a_plan_a_step_waits(gpu, scene_dataset, made, make_classifier, tiny_sam):
    """So it is the plan that spares it."""
    model, encoder = gpu.put(make_classifier(tuple("abcdef"))), put_encoder(gpu, tiny_sam)
    batch = put_batch(gpu, scene_dataset, made)
    recipe = override(PRESETS["demo"], CHANGES | {"cpm.view": "crop"})
    features = gpu.put(torch.zeros(5, 8, 8, 8))
    bounds = batch.pop("plan").segment_bounds
    with gpu:
        with pytest.raises(REFUSED):
            Cpm(encoder, recipe.cpm)(model, batch)
        with pytest.raises(REFUSED):
            ssc_loss(features, batch["segments"])
        ssc_loss(features, batch["segments"], bounds=bounds)


def test_measuring_cams_never_waits(gpu, scene_dataset, made, make_classifier, monkeypatch):
    """Not even for an image, once its pixels are on the GPU: all counts come back together at the end."""
    model = gpu.put(make_classifier(tuple("abcdef")))
    monkeypatch.setattr(
        "ray_wsss.stages.cams.to_tensor",
        lambda images, device: gpu.put(torch.zeros(len(images), 3, *images[0].shape[:2])),
    )
    config = LabelConfig(scales=(1.0, 1.5))
    evaluator = CamEvaluator(model, 6, config, 0.421, torch.device("cuda"))
    sample = Sample(scene_dataset, 3)
    with gpu:
        parts = [evaluator.count(table) for table in sample.tables(0, 1)]
    assert [images for _, images in parts] == [0, 1, 1, 1]
    assert all(counts.pixels.is_cuda for counts, images in parts if images)
    assert gpu.ops > 100


def test_labelling_waits(gpu, scene_dataset, made, make_classifier):
    model = gpu.put(make_classifier(tuple("abcdef")))
    batch = put_batch(gpu, scene_dataset, made)
    config = override(PRESETS["demo"], CHANGES).cpm
    with gpu:
        cams = find_cams(model, batch["image"], batch["plan"].image_labels, scales=(1.0,), flip=True)
        with pytest.raises(REFUSED):
            find_prompts(cams, config, guess=True)
