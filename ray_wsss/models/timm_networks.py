"""Feature extractors from timm: dilated convolutional networks, and transformers at the stride they have."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import FeatureInfo
from torch import Tensor, nn

from ray_wsss.errors import UserError

_UNBUILDABLE = (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError)
_ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""Arguments that let a network take images of any size, in the order in which they are tried: the first
interpolates the positions of plain transformers, the second is of windowed ones, others need none."""


class LayerFeatures(nn.Module):
    """A timm network that gives the feature maps of some of its layers, of images of any size.

    Class tokens and registers are dropped. The final norm is applied to every layer of a plain transformer,
    which has one width, and to the last layer of a hierarchical one.

    Args:
        model: network without a classification head. Layers after the last one asked for are removed.
        layers: indices of blocks (of stages if the network is hierarchical), ascending and 0 or more.
    """

    def __init__(self, model: Any, layers: Sequence[int]) -> None:  # timm declares nn.Module
        super().__init__()
        self.feature_info = FeatureInfo(list(model.feature_info), tuple(layers))
        self.pretrained_cfg = model.pretrained_cfg
        strides = [entry["reduction"] for entry in model.feature_info]
        self.multiple = max(strides)
        """Sides of images must be a multiple of this, so that no cell is part of the padding."""
        self.plain = len(set(strides)) == 1
        last = len(model.feature_info) - 1
        if isinstance(getattr(model, "norm", None), nn.Identity) and hasattr(model, "fc_norm"):
            # Where tokens are averaged for classification, the final norm comes after the mean.
            model.norm, model.fc_norm = model.fc_norm, nn.Identity()
        model.prune_intermediate_layers(list(layers), prune_norm=not self.plain and last not in layers)
        self.model = model
        self.layers = list(layers)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Feature maps of the layers. Sides of the images are multiples of ``multiple``."""
        return self.model.forward_intermediates(
            images, indices=self.layers, norm=True, output_fmt="NCHW", intermediates_only=True
        )


def build_timm(
    name: str,
    options: Mapping[str, Any],
    output_stride: int,
    layers: Sequence[int] | None,
    *,
    pretrained: bool,
    **loading: Any,
) -> Any:  # timm declares nn.Module, which lacks feature_info
    """Build one of timm's feature extractors.

    Args:
        options: arguments of the model itself.
        output_stride: strides beyond it become dilation, where the network can.
        layers: indices of the layers whose features are used; negative ones count from the last.
            None: all layers.
        loading: arguments of ``timm.create_model`` about the source of the weights.

    Returns:
        A network that gives a list of feature maps: `LayerFeatures` if it can't be dilated.

    Raises:
        UserError: the network can't have the stride or the layers, or its weights can't be downloaded.
    """
    arguments: dict[str, Any] = {"pretrained": pretrained, **loading, **options}
    chosen = {} if layers is None else {"out_indices": tuple(layers)}
    try:
        return timm.create_model(name, features_only=True, output_stride=output_stride, **chosen, **arguments)
    except _UNBUILDABLE as error:
        if not _unexpected(error, "output_stride"):
            reason = str(error) or "not supported"
            raise UserError(
                f"timm can't build {name} at output stride {output_stride} ({reason}); "
                "expected a network that supports this stride, such as resnet50 (8, 16 and 32)"
            ) from error
        return _build_layers(name, layers, arguments)
    except OSError as error:
        raise _not_downloaded(name, error) from error


def count_layers(name: str) -> int:
    """Number of blocks of a plain transformer, or of stages of another timm network; 0 if it is neither."""
    if not timm.is_model(name):
        return 0
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    return len(model.feature_info) if hasattr(model, "forward_intermediates") else 0


def _build_layers(name: str, layers: Sequence[int] | None, arguments: Mapping[str, Any]) -> LayerFeatures:
    """A network without the argument ``output_stride``. Raises UserError if it can't take every size."""
    model = _create(name, arguments)
    count = len(model.feature_info) if hasattr(model, "forward_intermediates") else 0
    if not count:
        raise UserError(f"timm gives no feature maps of {name}; expected another backbone, such as resnet50")
    layers = range(count) if layers is None else layers
    if not all(-count <= at < count for at in layers):
        listed = " ".join(map(str, layers))
        raise UserError(f"layers are {listed}; expected numbers from {-count} to {count - 1} for {name}")
    network = LayerFeatures(model, sorted({at % count for at in layers}))
    try:
        _try_sizes(network)
    except _UNBUILDABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name} can't be a backbone, since it takes images of one size alone ({reason}); "
            "expected a network that interpolates its positions, such as vit_small_patch14_dinov2"
        ) from error
    return network


def _create(name: str, arguments: Mapping[str, Any]) -> Any:
    for sizes in _ANY_SIZE:
        every: dict[str, Any] = {"num_classes": 0, **arguments, **sizes}
        try:
            return timm.create_model(name, **every)
        except OSError as error:
            raise _not_downloaded(name, error) from error
        except _UNBUILDABLE as error:
            if any(_unexpected(error, option) for option in sizes):
                continue
            raise UserError(f"timm can't build {name}: {error}") from error
    raise AssertionError("the last attempt has no arguments of its own")


def _try_sizes(network: LayerFeatures) -> None:
    """Compute the maps of a tiny image, whose sides differ; raises what the network raises."""
    height, width = 2 * network.multiple, 3 * network.multiple
    with torch.no_grad():
        device = next(network.parameters()).device
        maps = network.eval()(torch.zeros(1, 3, height, width, device=device))
    network.train()
    expected = [(height // stride, width // stride) for stride in network.feature_info.reduction()]
    found = [(features.shape[-2], features.shape[-1]) for features in maps]
    if found != expected:
        raise ValueError(f"maps of {found} cells instead of {expected}")


def _unexpected(error: Exception, argument: str) -> bool:
    """Whether timm refused a model's argument; its models word that in two ways."""
    return isinstance(error, TypeError) and "unexpected keyword" in str(error) and argument in str(error)


def _not_downloaded(name: str, error: OSError) -> UserError:
    return UserError(
        f"ImageNet weights of {name} can't be downloaded: {error}; expected a backbone_checkpoint, or "
        "pretrained=False"
    )
