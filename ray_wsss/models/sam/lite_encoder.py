"""Image encoder of the lite SAM: EfficientNet-Lite0 and what merges its maps."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

IMAGE_SIZE_PX = 384
PROMPT_DIM = 128
"""Channels of the coarsest map, and of prompts."""
FINE_DIMS = (PROMPT_DIM // 4, PROMPT_DIM // 8)
"""Channels of the maps at strides 8 and 4: those that the decoder's upscaling has there."""
STAGES = 7
"""Stages of EfficientNet-Lite0."""
LITE0: dict[str, Any] = {
    "model_name": "tf_efficientnet_lite0",
    "features_only": True,
    "out_indices": (1, 2, 3, 4),
}


class ContextBlock(nn.Module):
    """ConvNeXt's block: each cell looks at the 7 x 7 around it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 4 * dim, 1), nn.GELU(), nn.Conv2d(4 * dim, dim, 1))

    def forward(self, x: Float[Tensor, "N D h w"]) -> Float[Tensor, "N D h w"]:
        return x + self.mlp(self.norm(self.spread(x)))


class LiteEncoder(nn.Module):
    """EfficientNet-Lite0, whose maps at strides 4 to 32 are merged into an embedding.

    The batch norms are folded into the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.img_size = IMAGE_SIZE_PX
        network: Any = timm.create_model(**LITE0)
        fold_batch_norms(network.eval())
        self.network = network
        dims = network.feature_info.channels()
        self.lateral = nn.ModuleList(nn.Conv2d(dim, PROMPT_DIM, 1) for dim in dims[2:])
        self.down = nn.Conv2d(dims[1], PROMPT_DIM, 2, stride=2)
        self.context = nn.Sequential(*(ContextBlock(PROMPT_DIM) for _ in range(3)), LayerNorm2d(PROMPT_DIM))
        middle, fine = FINE_DIMS
        self.fine_lateral = nn.ModuleList([nn.Conv2d(dims[1], middle, 1), nn.Conv2d(dims[0], fine, 1)])
        self.fine_top = nn.ModuleList([nn.Conv2d(PROMPT_DIM, middle, 1), nn.Conv2d(middle, fine, 1)])
        self.fine_mix = nn.ModuleList(
            nn.Sequential(nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1)) for dim in FINE_DIMS
        )

    def stem(self, inputs: Float[Tensor, "N 3 S S"]) -> Tensor:
        return self.network.bn1(self.network.conv_stem(inputs.contiguous(memory_format=torch.channels_last)))

    def stages(self, x: Tensor, which: range) -> list[Tensor]:
        """Maps at the end of those of the given stages after which the stride changes."""
        maps = []
        for stage in which:
            x = self.network.blocks[stage](x)
            if stage in (1, 2, 4, 6):
                maps.append(x)
        return maps

    def merge(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at strides 16, 8 and 4 for the decoder."""
        at4, at8, at16, at32 = features
        last = F.interpolate(self.lateral[1](at32), scale_factor=2, mode="bilinear", align_corners=False)
        coarse = self.context(self.lateral[0](at16) + last + self.down(at8))
        maps = [coarse]
        for lateral, top, mix, x in zip(self.fine_lateral, self.fine_top, self.fine_mix, (at8, at4)):
            above = F.interpolate(top(maps[-1]), scale_factor=2, mode="bilinear", align_corners=False)
            maps.append(mix(lateral(x) + above))
        return maps[0], maps[1], maps[2]

    def forward(self, inputs: Float[Tensor, "N 3 S S"]) -> tuple[Tensor, Tensor, Tensor]:
        return self.merge(self.stages(self.stem(inputs), range(STAGES)))


def fold_batch_norms(network: nn.Module) -> None:
    """Replace each batch norm of an EfficientNet by its activation, and change the convolution before it.

    The network in eval mode computes the same as before, in half as many passes over memory.
    """
    before: tuple[str, nn.Module] | None = None
    for name, child in list(network.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            assert before is not None
            network.add_module(before[0], fuse_conv_bn_eval(before[1], child))  # pyright: ignore
            network.add_module(name, getattr(child, "act", nn.Identity()))
        elif not isinstance(child, nn.Conv2d):
            fold_batch_norms(child)
        before = name, child


def load_lite0(encoder: LiteEncoder, state: dict[str, Tensor]) -> None:
    """Load EfficientNet-Lite0's weights, under timm's names and with batch norms, into the encoder."""
    network: Any = timm.create_model(**LITE0)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    fold_batch_norms(network.eval())
    encoder.network.load_state_dict(network.state_dict())
