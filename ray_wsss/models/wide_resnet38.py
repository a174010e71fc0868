"""WideResNet-38, model A1 of Wu, Shen and van den Hengel, "Wider or Deeper" (2016): S2C's backbone.

Parameters have the names that weakly supervised methods have used for these ImageNet weights since
AffinityNet (psa, `network/resnet38d.py`), so a published state dict loads unchanged.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.errors import UserError

OUT_CHANNELS = 4096
_LEVELS = {2: (3, 128, 128), 3: (3, 256, 256), 4: (6, 512, 512), 5: (3, 512, 1024)}
"""Residual levels b2 to b5: blocks, channels between the two convolutions, output channels."""
_GEOMETRY = {8: (1, 2, 1, 4), 16: (2, 1, 1, 2), 32: (2, 1, 2, 1)}
"""For each output stride: stride and dilation of b5, stride and dilation of b6 (b7 has b6's dilation)."""
_DROPOUT = 0.2
"""Dropout rate of both bottlenecks in S2C's code; psa and most methods after it use 0.3 and 0.5."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, plus a shortcut: the input or its projection."""

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, stride: int, dilations: tuple[int, int]
    ) -> None:
        super().__init__()
        first, second = dilations
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = _conv3x3(in_channels, mid_channels, stride=stride, dilation=first)
        self.bn_branch2b1 = nn.BatchNorm2d(mid_channels)
        self.conv_branch2b1 = _conv3x3(mid_channels, out_channels, dilation=second)
        same = in_channels == out_channels and stride == 1
        self.conv_branch1 = None if same else _conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        activated = F.relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(activated)
        branch = self.conv_branch2a(activated)
        return shortcut + self.conv_branch2b1(F.relu(self.bn_branch2b1(branch)))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to 1/4, 1/2 and all of the output channels, plus a projected shortcut.

    In training, whole channels are dropped before the second and the third convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        quarter, half = out_channels // 4, out_channels // 2
        self.bn_branch2a = nn.BatchNorm2d(in_channels)
        self.conv_branch2a = _conv1x1(in_channels, quarter, stride)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = nn.Dropout2d(_DROPOUT)
        self.conv_branch2b1 = _conv3x3(quarter, half, dilation=dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = nn.Dropout2d(_DROPOUT)
        self.conv_branch2b2 = _conv1x1(half, out_channels)
        self.conv_branch1 = _conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        activated = F.relu(self.bn_branch2a(x))
        branch = self.conv_branch2a(activated)
        branch = self.conv_branch2b1(self.dropout_2b1(F.relu(self.bn_branch2b1(branch))))
        branch = self.conv_branch2b2(self.dropout_2b2(F.relu(self.bn_branch2b2(branch))))
        return self.conv_branch1(activated) + branch


class WideResNet38(nn.Module):
    """WideResNet-38 without its classifier: 105 million parameters, no pooling.

    Args:
        output_stride: 8 (usual for weak supervision: b5 dilated by 2, b6 and b7 by 4), 16 (b6 and b7 dilated
            by 2), or 32 (no dilation, as in ImageNet training).

    Raises:
        UserError: `output_stride` has another value.
    """

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        if output_stride not in _GEOMETRY:
            raise UserError(f"output_stride is {output_stride}; expected 8, 16 or 32 for wide_resnet38")
        self.conv1a = _conv3x3(3, 64)
        for name, block in _blocks(output_stride):
            self.add_module(name, block)
        self.bn7 = nn.BatchNorm2d(OUT_CHANNELS)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B 4096 h w"]]:
        """Compute the last feature map (after batch norm and ReLU, so 0 or more), as a list of one tensor."""
        x = images
        for layer in self.children():
            x = layer(x)
        return [F.relu(x)]


def _blocks(output_stride: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the blocks b2 to b7 with their names; b5 and b6 are dilated if they don't halve the map."""
    stride_b5, dilation_b5, stride_b6, dilation_b6 = _GEOMETRY[output_stride]
    channels = 64
    for level, (count, mid_channels, out_channels) in _LEVELS.items():
        stride, dilation = (stride_b5, dilation_b5) if level == 5 else (2, 1)
        # A strided convolution reads the map before halving, so the one that replaces it is not dilated.
        yield f"b{level}", ResidualBlock(channels, mid_channels, out_channels, stride, (1, dilation))
        channels = out_channels
        for index in range(1, count):
            dilations = (dilation, dilation)
            yield f"b{level}_{index}", ResidualBlock(channels, mid_channels, channels, 1, dilations)
    yield "b6", BottleneckBlock(channels, OUT_CHANNELS // 2, stride_b6, dilation_b6)
    yield "b7", BottleneckBlock(OUT_CHANNELS // 2, OUT_CHANNELS, 1, dilation_b6)


def _conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
