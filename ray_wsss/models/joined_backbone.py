"""Several networks as one backbone, such as DINOv2 beside CLIP."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ray_wsss.errors import UserError
from ray_wsss.models.backbone import Backbone, build_backbone
from ray_wsss.ops.resize import resize_images


class JoinedBackbone(nn.Module):
    """Backbones that see the same images; their feature maps are concatenated, at the size of the first's."""

    def __init__(self, parts: Sequence[Backbone]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.out_channels = sum(part.out_channels for part in parts)
        self.channels, self.strides = [self.out_channels], [parts[0].strides[parts[0].grid]]
        self.multiple = 1
        """Each part resizes the images as it needs them."""
        self.plain = False

    @property
    def backbones(self) -> list[Backbone]:
        """The parts, in order."""
        return [cast(Backbone, part) for part in self.parts]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Feature map that covers the image."""
        first, *others = (part(images) for part in self.backbones)
        grid_hw = (first.shape[-2], first.shape[-1])
        return torch.cat([first, *(resize_images(features, grid_hw) for features in others)], dim=1)

    def maps(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """The feature map alone, in a list."""
        return [self(images)]

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters of the stems and stages; the networks' last stages are one stage, and so on back."""
        backwards = zip_longest(*(reversed(part.stages()) for part in self.backbones), fillvalue=[])
        return [[p for stage in stages for p in stage] for stages in backwards][::-1]

    def freeze(self, stages: int | Literal["all"], norm: bool) -> None:
        """Exclude weights of every network from training (`Backbone.freeze`)."""
        for part in self.backbones:
            part.freeze(stages, norm)

    def set_norm_eval(self) -> None:
        """Keep the running statistics of every batch norm fixed; call it after each ``train()``."""
        for part in self.backbones:
            part.set_norm_eval()

    def compile_networks(self) -> None:
        """Make the networks faster with torch.compile."""
        for part in self.backbones:
            part.compile_networks()


AnyBackbone = Backbone | JoinedBackbone


def build_backbones(
    names: str,
    *,
    output_stride: int,
    pretrained: bool,
    checkpoint: str | None = None,
    layers: Sequence[int] | None = (-1,),
) -> AnyBackbone:
    """Build one backbone (`build_backbone`), or several whose names are joined by "+".

    ``output_stride`` is the first one's. The others have it too, if they can; their maps are resized.

    Raises:
        UserError: a backbone can't be built, or several have one file of weights.
    """
    first, *others = names.split("+")
    if others and checkpoint is not None:
        raise UserError(
            f"backbone_checkpoint {checkpoint} is one file, and backbone is {names}; expected one backbone, "
            "or the weights that the packages and timm have"
        )
    head = build_backbone(
        first, output_stride=output_stride, pretrained=pretrained, checkpoint=checkpoint, layers=layers
    )
    if not others:
        return head
    more = [
        build_backbone(
            name, output_stride=output_stride, pretrained=pretrained, layers=layers, any_stride=True
        )
        for name in others
    ]
    return JoinedBackbone([head, *more])
