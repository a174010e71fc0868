"""TensorFlow's "SAME" padding for images of any size, in operations that torch.export traces fast."""

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F


class TraceableConv2dSame(nn.Module):
    """A strided convolution of timm with "SAME" padding, whose result has ceil(side / 2) cells.

    timm computes the padding from the side: an expression that grows so much from layer to layer that tracing
    takes hours. Here the padding is one pixel more than ever needed, and the even sides' windows begin one
    pixel later: the same values, from a constant padding.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        spans = [d * (k - 1) + 1 for d, k in zip(convolution.dilation, convolution.kernel_size)]
        self.rims = [span // 2 for span in spans]

    @staticmethod
    def fits(convolution: nn.Conv2d) -> bool:
        """True for such a convolution: of stride 2, with an odd kernel."""
        odd = all(k % 2 == 1 for k in convolution.kernel_size)
        return isinstance(convolution, Conv2dSame) and tuple(convolution.stride) == (2, 2) and odd

    def forward(self, x: Tensor) -> Tensor:
        conv, (rows, columns) = self.convolution, self.rims
        height, width = x.shape[-2:]
        x = F.pad(x, (columns, columns + 1, rows, rows + 1))
        x = _drop_one(x, 2, height, height + 2 * rows)
        x = _drop_one(x, 3, width, width + 2 * columns)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _drop_one(x: Tensor, dim: int, side: int, kept: int) -> Tensor:
    """``kept`` rows or columns of ``kept`` + 1: not the first if ``side`` is even, else not the last."""
    first = 1 - torch.scalar_tensor(side, dtype=torch.int64, device=x.device) % 2
    # torch.arange would make an expression of its length.
    order = torch.ones(kept, dtype=torch.int64, device=x.device).cumsum(0) - 1
    return x.index_select(dim, order + first)


def make_traceable(module: Any) -> None:
    """Replace the convolutions below ``module`` that `TraceableConv2dSame` can replace."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and TraceableConv2dSame.fits(child):
            setattr(module, name, TraceableConv2dSame(child))
        else:
            make_traceable(child)
