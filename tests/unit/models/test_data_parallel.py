"""Norms and dropout of two workers against those of one, in real processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers.drop import DropPath
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.testing import assert_close

from ray_wsss.models.data_parallel import match_one_worker


def build() -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6), BatchNormAct2d(5)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    drops = [nn.Dropout2d(0.3), DropPath(0.4), DropPath(0.2, scale_by_keep=False)]
    return nn.Sequential(nn.Conv2d(3, 6, 3), norms[0], nn.Dropout(0.4), nn.Conv2d(6, 5, 1), norms[1], *drops)


def images() -> torch.Tensor:
    return 3 + torch.randn(8, 3, 6, 7, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, share: slice) -> dict[str, torch.Tensor]:
    """Two passes in training, one of them with a gradient, and one in evaluation."""
    torch.manual_seed(5)
    model(images()[share])
    output = model(images()[share])
    (output.square().sum() / output.numel() + output.sin().sum() / output.numel()).backward()
    result = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    result |= {name: value.clone() for name, value in model.state_dict().items()}
    return result | {"trained": output.detach(), "evaluated": model.eval()(images()[share]).detach()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = build()
    parameters = [id(p) for p in model.parameters()]
    match_one_worker(model, rank, 2, on_gpu=False)
    assert [id(p) for p in model.parameters()] == parameters
    torch.save(step(model, slice(4 * rank, 4 * rank + 4)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("default")
def test_two_workers_compute_what_one_does(tmp_path: Path):
    alone = step(build(), slice(None))
    spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        if name in ("trained", "evaluated"):
            assert_close(torch.cat([first[name], second[name]]), expected, atol=1e-5, rtol=1e-4)
        elif name.startswith("grad "):  # as DDP would average them
            assert_close((first[name] + second[name]) / 2, expected, atol=1e-5, rtol=1e-4, msg=name)
        else:
            assert_close(first[name], expected, atol=1e-5, rtol=1e-4, msg=name)
            assert torch.equal(first[name], second[name]), name


def test_on_gpus_norms_become_torchs_own():
    model = build()
    names = list(model.state_dict())
    match_one_worker(model, 0, 2, on_gpu=True)
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert isinstance(model[4], nn.SyncBatchNorm)
    assert list(model.state_dict()) == names
