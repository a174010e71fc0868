"""Layers that would compute something else on N workers than on one: batch norm and dropout.

Batch norm looks at the whole batch, of which each worker has a share; dropout draws at random, and workers
would draw either alike or each for itself.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F


def match_one_worker(model: nn.Module, rank: int, world_size: int, *, on_gpu: bool) -> None:
    """Make a model compute on its share of a batch what one worker computes on the whole.

    In place: parameters and the names of the state dict stay. Call it before DDP, with torch.distributed up
    and the same random state on all workers at every forward pass.

    Args:
        on_gpu: take torch's SyncBatchNorm, which knows GPUs only.
    """
    if on_gpu:
        converted = convert_sync_batchnorm(model)  # timm's also knows norms that have their activation inside
        assert converted is model, "a model is no single norm"
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not on_gpu:
            model.set_submodule(name, SyncedBatchNorm2d(module))
        elif isinstance(module, nn.Dropout | nn.Dropout2d):
            model.set_submodule(name, SharedDropout(module, rank, world_size))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all workers' images, on the CPU (gloo).

    Takes the place of a BatchNorm2d or of timm's BatchNormAct2d, of which it takes over parameters,
    statistics and mode. Workers must have equally many values.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        assert norm.momentum is not None, "a running mean, not a cumulative one"
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name, value in norm.named_buffers(recurse=False):
            setattr(self, name, value)
        self.after = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            self.after = nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, D, H, W); the gradient goes through the statistics of all workers."""
        if not self.training:
            return self.after(super().forward(input))
        count = dist.get_world_size() * input.numel() // input.shape[1]
        mean = _sum_over_workers(input.float().sum((0, 2, 3))) / count
        centred = input.float() - mean[:, None, None]
        # Two passes: the difference of squares would lose digits where the mean is large.
        variance = _sum_over_workers(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = (self.weight * torch.rsqrt(variance + self.eps))[:, None, None]
        return self.after((centred * scale + self.bias[:, None, None]).to(input.dtype))

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        self.get_buffer("running_mean").lerp_(mean, self.momentum or 0.0)
        self.get_buffer("running_var").lerp_(unbiased, self.momentum or 0.0)
        self.get_buffer("num_batches_tracked").add_(1)


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every worker's loss depends on every worker's value.
        return _SumOverWorkers.forward(ctx, gradient)


def _sum_over_workers(value: Tensor) -> Tensor:
    total = _SumOverWorkers.apply(value)
    assert isinstance(total, Tensor)
    return total


class SharedDropout(nn.Module):
    """Dropout, or by channels Dropout2d, that draws for the images of all workers and takes its own.

    Workers that draw from the same random state then drop what one worker would.
    """

    def __init__(self, dropout: nn.Dropout | nn.Dropout2d, rank: int, world_size: int) -> None:
        super().__init__()
        self.p, self.by_channel = dropout.p, isinstance(dropout, nn.Dropout2d)
        self.rank, self.world_size = rank, world_size
        self.train(dropout.training)

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of (B, D, ...), or whole channels, and scale up the rest."""
        if not self.training or self.p == 0:
            return input
        drop = F.dropout2d if self.by_channel else F.dropout
        drawn = drop(input.new_ones(len(input) * self.world_size, *input.shape[1:]), self.p)
        return input * drawn[self.rank * len(input) :][: len(input)]
