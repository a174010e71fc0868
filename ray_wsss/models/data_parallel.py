"""Batch norm and dropout that compute the same on N workers as on one.

The ordinary layers don't. Batch norm needs statistics of the whole batch, but each worker has only a share of
it. Dropout draws one random mask for the whole batch, but workers would each draw a mask for their own share.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.drop import DropPath
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F


def match_one_worker(model: nn.Module, rank: int, world_size: int, *, on_gpu: bool) -> None:
    """Make a model compute on its share of a batch what one worker computes on the whole.

    The model is changed in place and keeps its parameters and the names of its state dict. Call this before
    wrapping the model in DDP, with torch.distributed initialised. All workers need the same random state at
    every forward pass.

    Args:
        rank: index of this worker, in 0 .. world_size - 1.
        world_size: number of workers.
        on_gpu: use torch's SyncBatchNorm, which supports GPUs only.
    """
    if on_gpu:
        # timm's function also converts norms that include an activation; torch's does not.
        converted = convert_sync_batchnorm(model)
        assert converted is model, "model is a single batch norm; expected a network that contains norms"
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not on_gpu:
            model.set_submodule(name, SyncedBatchNorm2d(module))
        elif isinstance(module, nn.Dropout | nn.Dropout2d):
            model.set_submodule(name, SharedDropout(module, rank, world_size))
        elif isinstance(module, DropPath):
            model.set_submodule(name, SharedDropPath(module, rank, world_size))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all workers' images, on the CPU (gloo).

    Replaces a BatchNorm2d or timm's BatchNormAct2d, and takes over its parameters, statistics and mode. All
    workers must have equally many values.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        assert norm.momentum is not None, "momentum is None (cumulative mean); expected a number"
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name, value in norm.named_buffers(recurse=False):
            setattr(self, name, value)
        self.after = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            self.after = nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, D, H, W); the gradient flows through the statistics of all workers."""
        if not self.training:
            return self.after(super().forward(input))
        count = dist.get_world_size() * input.numel() // input.shape[1]
        mean = _sum_over_workers(input.float().sum((0, 2, 3))) / count
        centred = input.float() - mean[:, None, None]
        # A second pass, since the mean of squares minus the squared mean loses digits if the mean is large.
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
    """Sum of a tensor over all workers, with its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        # Every worker's loss depends on every worker's value, so the gradients add up too.
        return _SumOverWorkers.forward(ctx, *grad_outputs)


def _sum_over_workers(value: Tensor) -> Tensor:
    total = _SumOverWorkers.apply(value)
    assert isinstance(total, Tensor)
    return total


class SharedDropout(nn.Module):
    """Dropout or Dropout2d that draws a mask for the images of all workers and uses the part for its own.

    Workers with the same random state then drop the same values as a single worker with the whole batch.
    """

    def __init__(self, dropout: nn.Dropout | nn.Dropout2d, rank: int, world_size: int) -> None:
        super().__init__()
        self.p, self.by_channel = dropout.p, isinstance(dropout, nn.Dropout2d)
        self.rank, self.world_size = rank, world_size
        self.train(dropout.training)

    def forward(self, input: Tensor) -> Tensor:
        """Drop single values of (B, D, ...), or whole channels for a Dropout2d, and scale up the rest."""
        if not self.training or self.p == 0:
            return input
        drop = F.dropout2d if self.by_channel else F.dropout
        drawn = drop(input.new_ones(len(input) * self.world_size, *input.shape[1:]), self.p)
        return input * drawn[self.rank * len(input) :][: len(input)]


class SharedDropPath(nn.Module):
    """timm's DropPath, which skips a block for some images, with a draw for the images of all workers."""

    def __init__(self, drop: DropPath, rank: int, world_size: int) -> None:
        super().__init__()
        self.keep, self.scale = 1 - drop.drop_prob, drop.scale_by_keep
        self.rank, self.world_size = rank, world_size
        self.train(drop.training)

    def forward(self, input: Tensor) -> Tensor:
        """Set (B, ...) to 0 for some images, and scale up the others."""
        if not self.training or self.keep == 1:
            return input
        shape = (len(input) * self.world_size, *[1] * (input.ndim - 1))
        drawn = input.new_empty(shape).bernoulli_(self.keep)
        if self.scale and self.keep > 0:
            drawn = drawn / self.keep
        return input * drawn[self.rank * len(input) :][: len(input)]
