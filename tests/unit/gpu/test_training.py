"""Training steps on the device: losses, gradients, pseudo labels as on the CPU; the host never waits."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.testing import assert_close

from ray_wsss.config import AugmentConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.models.data_parallel import match_one_worker
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.store import load_segmenter
from ray_wsss.training.classifier import ClassifierStep
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.host_plan import collate
from ray_wsss.training.loop import Batch, to_device
from ray_wsss.training.segmenter import SegmenterStep

CHANGES = {"cpm.warmup_iters": 0, "cpm.tau": 0.3, "cpm.min_distance_px": 4, "cpm.scales": (0.5, 1.0)}
AUGMENT = AugmentConfig(long_side_px=(40, 80), crop_px=64, jitter_probability=0, grey_probability=0)


@pytest.fixture(scope="module")
def batch(scene_dataset: Path, make_views: Any) -> Batch:
    made = make_views("int8")
    crops = TrainingCrops(scene_dataset, list(range(14)), num_classes=6, augment=AUGMENT, seed=3, **made)
    return collate([crops[(k, k)] for k in range(6)])


@pytest.fixture(params=["crop", "image"])
def recipe(request: Any) -> Recipe:
    return override(PRESETS["demo"], CHANGES | {"cpm.view": request.param, "classifier.precision": "fp32"})


def pinned(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device, brought there as in training."""
    if device.type == "cuda":
        batch = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return to_device(batch, device)


def run_step(recipe: Recipe, model: Any, cpm: Cpm, batch: Batch) -> tuple[dict[str, float], torch.Tensor]:
    """Losses of a step by name, and its gradient, on the CPU."""
    step = ClassifierStep(recipe, cpm)
    total, parts = step(model, batch, step.counts(batch), 0)
    total.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
    return {name: loss.item() for name, loss in parts.items()}, gradient


def test_pseudo_labels_of_cpm(recipe, batch, make_classifier, tiny_sam, device):
    labels = []
    for name in ("cpu", device.type):
        sam, where = deepcopy(tiny_sam).to(name), torch.device(name)
        model = make_classifier(tuple("abcdef")).to(where)
        labels.append(Cpm(SamEncoder(sam), recipe.cpm)(model, pinned(batch, where)).cpu())
    assert len(labels[0].unique()) > 3
    assert (labels[0] == labels[1]).float().mean() > 0.999


def test_losses_and_gradients(recipe, batch, make_classifier, tiny_sam, device):
    results = []
    for name in ("cpu", device.type):
        where = torch.device(name)
        model, sam = make_classifier(tuple("abcdef")).to(where), deepcopy(tiny_sam).to(where)
        results.append(run_step(recipe, model, Cpm(SamEncoder(sam), recipe.cpm), pinned(batch, where)))
    (here, gradient), (there, other) = results
    assert there == pytest.approx(here, rel=2e-3)
    assert torch.cosine_similarity(gradient, other, dim=0) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits(recipe, batch, make_classifier, tiny_sam, device, never_waits, precision):
    recipe = override(recipe, {"classifier.precision": precision})
    model, sam = make_classifier(tuple("abcdef")).train().to(device), deepcopy(tiny_sam).to(device)
    cpm = Cpm(SamEncoder(sam), recipe.cpm, decode_batch_size=4, bf16=precision == "bf16")
    step, there = ClassifierStep(recipe, cpm), pinned(batch, device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train() -> None:
        optimiser.zero_grad()
        total, _ = step(model, there, step.counts(there), 0)
        total.backward()
        optimiser.step()

    train()  # allocates, and chooses kernels
    with never_waits:
        train()


def test_the_segmenters_step(segmenter_dir, device):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 7, (4, 64, 64), generator=generator).byte()
    label[0, :9] = 255
    batch = {"image": torch.rand(4, 3, 64, 64, generator=generator), "pseudo_label": label}
    losses = []
    for name in ("cpu", device.type):
        where = torch.device(name)
        model, there = load_segmenter(segmenter_dir)[0].to(where), pinned(batch, where)
        step = SegmenterStep()
        losses.append(step(model, there, step.counts(there), 0)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def _share(rank: int, folder: str) -> None:
    dist.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 2, 1))
    match_one_worker(model.to(device), rank, 2, on_gpu=True)
    parallel = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank])
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(device)
    parallel(images[4 * rank : 4 * rank + 4]).square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.save(gradient.cpu(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_gpus_train_as_one(tmp_path, device):
    if device.type == "cpu" or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    spawn(_share, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 2, 1))
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model(images).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert_close(first, expected, atol=1e-4, rtol=1e-3)
