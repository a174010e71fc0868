"""Backbones: timm's feature extractors and the paper's WideResNet-38, with ImageNet weights."""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ray_wsss.errors import UserError
from ray_wsss.models.backbone_weights import (
    has_package,
    load_timm_file,
    load_weights,
    packaged_state,
    read_checkpoint,
)
from ray_wsss.models.timm_networks import LayerFeatures, build_timm
from ray_wsss.models.wide_resnet38 import OUT_CHANNELS, WideResNet38
from ray_wsss.ops.device import has_bf16, mixed_precision
from ray_wsss.ops.resize import resize_images, round_sides
from ray_wsss.storage import parse_path

# Narrow ResNets for small images and training from scratch. Their stems have ordinary convolutions. At output
# stride 8 the receptive field (over 100 px) spans a whole object from any of the object's pixels.
_SHAPE = {"layers": (1, 1, 2, 2), "channels": (24, 32, 48, 64)}
_SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet_small": ("resnet10t", _SHAPE),
    # The stem, at half the image's resolution, takes most of resnet_small's time. With half its channels, a
    # step of the demo's classifier without CPM takes 74 ms instead of 109.
    "resnet_tiny": ("resnet10t", {**_SHAPE, "stem_width": 16}),
}
_WIDE_RESNET38 = "wide_resnet38"
# The ImageNet weights that 1-stage-wseg converted from the authors' MXNet file.
_WIDE_RESNET38_FILE = "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"
# A stage's name and number in timm's layouts and in WideResNet-38's: blocks.3, layer3, stages_3, s3, b3_1.
_STAGE = re.compile(r"(?:model\.)?(?:(?:blocks|layers|stages|levels)\.|layer|stages_|s|b)(\d+)(?:_\d+)?\.")


class Backbone(nn.Module):
    """Network that normalises RGB images in [0, 1] and computes their feature map.

    Args:
        network: computes a list of feature maps.
        channels: channels of each map.
        strides: pixels per cell of each map.
        multiple: images are resized to sides that are multiples of it. A network that pads them instead would
            give maps that are wider than the image.
        grid: index of the map whose size the others are resized to, before all are concatenated.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        channels: Sequence[int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        strides: Sequence[int],
        multiple: int = 1,
        grid: int = -1,
    ) -> None:
        super().__init__()
        # With channels last, convolutions are faster, also on CPUs: 1.4 times for the demo's classifier.
        self.network = network.to(memory_format=torch.channels_last)
        self.channels, self.strides = list(channels), list(strides)
        self.out_channels = sum(channels)
        self.multiple, self.grid = multiple, grid
        self.frozen = False
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def plain(self) -> bool:
        """Whether the network is a transformer whose layers all have one stride."""
        return isinstance(self.network, LayerFeatures) and self.network.plain

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Feature map that covers the image: the maps of all layers, concatenated."""
        maps = self.maps(images)
        if len(maps) == 1:
            return maps[0]
        grid_hw = (maps[self.grid].shape[-2], maps[self.grid].shape[-1])
        return torch.cat([resize_images(features, grid_hw) for features in maps], dim=1)

    def maps(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Feature maps of the layers. A frozen network computes in bfloat16 where the hardware does."""
        if not self.frozen:
            return self._maps(images)
        bf16 = has_bf16(images.device)
        with torch.no_grad(), mixed_precision(images.device, True) if bf16 else nullcontext():
            return [features.float() for features in self._maps(images)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        if self.multiple > 1:
            size_hw = round_sides((images.shape[-2], images.shape[-1]), self.multiple)
            images = resize_images(images, size_hw)
        normalised = (images - self.mean) / self.std
        return self.network(normalised.contiguous(memory_format=torch.channels_last))

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters of the stem, then those of each stage (of each block of a plain transformer).

        What follows the last stage, such as the final norm, counts as a part of it. A network whose stages
        are not recognised has a stem alone.
        """
        stages: dict[str, list[nn.Parameter]] = {"stem": []}
        at = "stem"
        for name, parameter in self.network.named_parameters():
            found = _STAGE.match(name)
            at = found[1] if found else at
            stages.setdefault(at, []).append(parameter)
        return list(stages.values())

    def freeze(self, stages: int | Literal["all"], norm: bool) -> None:
        """Exclude weights from training: the stem and first ``stages`` stages, and with ``norm`` batch norms.

        With ``stages`` 0 the stem is trained too. With "all" nothing is: the network stays in eval mode, and
        its features have no gradient.

        Raises:
            UserError: the stages of this backbone are not recognised, and ``stages`` is a number above 0.
        """
        if stages == "all":
            self.requires_grad_(False)
            self.frozen = True
            self.eval()
            return
        groups = self.stages() if stages else []
        if len(groups) == 1:
            raise UserError(
                f"freeze_stages is {stages}; expected 0 or all, since this backbone's stages are unknown"
            )
        for group in groups[: 1 + stages]:
            for parameter in group:
                parameter.requires_grad_(False)
        if norm:
            for module in _batch_norms(self):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of the network; a frozen one stays in eval mode."""
        return super().train(mode and not self.frozen)

    def set_norm_eval(self) -> None:
        """Keep the running statistics of every batch norm fixed; call it after each ``train()``."""
        for module in _batch_norms(self):
            module.eval()

    def compile_networks(self) -> None:
        """Make the network faster with torch.compile."""
        self.network.compile()


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [m for m in module.modules() if isinstance(m, kinds)]


def build_backbone(
    name: str,
    *,
    output_stride: int,
    pretrained: bool,
    checkpoint: str | None = None,
    layers: Sequence[int] | None = (-1,),
    any_stride: bool = False,
) -> Backbone:
    """Build a backbone by its timm name, or ``resnet_small`` or ``resnet_tiny``, or ``wide_resnet38``.

    Args:
        name: a timm model with feature maps, or one of the three other names.
        output_stride: image pixels per cell of the feature map. Convolutional networks are dilated beyond it;
            transformers have it or not.
        pretrained: start from ImageNet weights.
        checkpoint: file of the ImageNet weights. None: the weights of ``tf_efficientnet_lite0`` (and 1 and 2)
            come from an installed package; those of other timm models are downloaded.
        layers: indices of the layers whose features are concatenated; negative ones count from the last. A
            layer is a block of a plain transformer, else a stage. None: all layers.
        any_stride: take the strides that a transformer has, without a word.

    Raises:
        UserError: the name is unknown, the network can't have the stride or the layers, or the weights can't
            be loaded.
    """
    if name == _WIDE_RESNET38:
        if layers is not None and tuple(layers) != (-1,):
            raise UserError(f"layers are {' '.join(map(str, layers))}; expected -1 for wide_resnet38")
        return _build_wide_resnet38(output_stride, pretrained, checkpoint)
    timm_name, extra = _SMALL.get(name, (name, {}))
    if not timm.is_model(timm_name.partition(".")[0]):
        near = timm.list_models(f"*{timm_name.split('_')[0]}*")[:5]
        raise UserError(
            f"backbone {name} is neither resnet_small, resnet_tiny, wide_resnet38 nor a timm model; "
            f"similar names: {near}"
        )
    if pretrained and extra and checkpoint is None:
        raise UserError(
            f"{name} has no ImageNet weights; expected pretrained=False, or a backbone_checkpoint"
        )
    packaged = has_package(name)
    offline = bool(extra) or checkpoint is not None or packaged
    build = partial(build_timm, timm_name, extra, output_stride, layers)
    network = build(pretrained=pretrained and not offline)
    own = any_stride and isinstance(network, LayerFeatures)
    grid = -1 if own else _find_grid(name, network, output_stride)
    mean = tuple(network.pretrained_cfg.get("mean", IMAGENET_DEFAULT_MEAN))
    std = tuple(network.pretrained_cfg.get("std", IMAGENET_DEFAULT_STD))
    if name.startswith("tf_efficientnet_lite"):  # timm has 0.5
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    if pretrained and checkpoint is not None:
        network = load_timm_file(network, build, read_checkpoint(checkpoint), checkpoint)
    elif pretrained and packaged:
        load_weights(network, packaged_state(name), "the package of ImageNet weights")
    multiple = network.multiple if isinstance(network, LayerFeatures) else 1
    channels, strides = network.feature_info.channels(), network.feature_info.reduction()
    return Backbone(network, channels, mean, std, strides=strides, multiple=multiple, grid=grid)


def timm_name_of(backbone: str) -> tuple[str, dict[str, Any]]:
    """Name of a backbone in timm, and the arguments that timm builds it with; "" if timm doesn't have it."""
    name, options = _SMALL.get(backbone, (backbone, {}))
    return (name, options) if timm.is_model(name.partition(".")[0]) else ("", {})


def _find_grid(name: str, network: Any, output_stride: int) -> int:
    """Index of the feature map that has the output stride. Raises UserError if none has it."""
    strides = network.feature_info.reduction()
    if len(strides) == 1 and not isinstance(network, LayerFeatures):
        return 0  # dilated as asked
    if output_stride in strides:
        return strides.index(output_stride)
    listed = " and ".join(map(str, sorted(set(strides))))
    hint = "" if isinstance(network, LayerFeatures) and network.plain else ", or other layers"
    raise UserError(
        f"output_stride is {output_stride}, and the chosen layers of {name} have {listed} pixels per cell; "
        f"expected output_stride {listed.replace('and', 'or')}{hint}"
    )


def _build_wide_resnet38(output_stride: int, pretrained: bool, checkpoint: str | None) -> Backbone:
    """Build the paper's backbone; its weights are read from ``checkpoint``, never downloaded."""
    expected = (
        "its ImageNet weights as a PyTorch state dict, e.g. --classifier.backbone-checkpoint "
        f"{_WIDE_RESNET38_FILE} (res38_cls.pth, trained further on VOC, also fits), or pretrained=False"
    )
    if pretrained and checkpoint is None:
        raise UserError(f"wide_resnet38's weights are not downloaded; expected {expected}")
    if pretrained and checkpoint is not None and parse_path(checkpoint).suffix == ".params":
        raise UserError(f"backbone_checkpoint {checkpoint} is an MXNet file; expected {expected}")
    network = WideResNet38(output_stride)
    if pretrained and checkpoint is not None:
        load_weights(network, read_checkpoint(checkpoint), checkpoint)
    statistics = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return Backbone(network, [OUT_CHANNELS], *statistics, strides=[output_stride])
