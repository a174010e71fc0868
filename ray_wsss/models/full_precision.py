"""Layers that are not rounded where the rest of a network runs in mixed precision."""

import torch
from torch import Tensor, nn


class FullPrecisionConv2d(nn.Conv2d):
    """Convolution in the type of its weights, float32, also under autocast.

    For heads: in bfloat16, class maps and logits would keep 8 significant bits, so that many pixels of a CAM
    tie. A head's 1x1 convolutions are a small part of a network's work.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, D, H, W) of any floating-point type; returns the type of the weights."""
        kind = input.device.type
        # Without autocast there is no context, which torch.export would trace; the device meta has none.
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return super().forward(input.to(self.weight.dtype))
        with torch.autocast(kind, enabled=False):
            return super().forward(input.to(self.weight.dtype))
