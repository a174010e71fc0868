"""Weights under the names that plain segmentation-models-pytorch or timm code gives them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.errors import UserError
from ray_wsss.export.network.check import check_images, largest_difference
from ray_wsss.export.network.programs import METADATA_KEY
from ray_wsss.export.network.wrap import to_float
from ray_wsss.models.backbone import Backbone, timm_name_of
from ray_wsss.models.classifier import Classifier, ClassifierSpec
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec
from ray_wsss.models.timm_networks import LayerFeatures

_CLASSES = {
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "unet": "Unet",
}
_CHECKED_AT = ((2, 96, 64),)
"""Batch size, height and width of the images that the weights are checked on."""


@dataclass(frozen=True, eq=False)
class PlainNetwork:
    """A network as other libraries build it, with our weights.

    A segmenter is a model of segmentation-models-pytorch (smp), whose logits are the head's cells. A
    classifier is timm's feature extractor and two 1x1 convolutions: class maps = ``to_class_maps`` @
    relu(``to_features`` @ features).
    """

    model: Segmenter | Classifier
    state: Mapping[str, Tensor]
    """Tensors by their names in the file."""
    recipe: Mapping[str, Any]
    """How other libraries build the network: entries of ``model.json``."""

    @classmethod
    def of(cls, model: Segmenter | Classifier, spec: SegmenterSpec | ClassifierSpec) -> "PlainNetwork":
        """The plain form of a network. Raises UserError if neither smp nor timm has one."""
        backbone = model.backbone
        name, options = timm_name_of(spec.backbone)
        if not isinstance(backbone, Backbone) or isinstance(backbone.network, LayerFeatures) or not name:
            raise _no_plain_form(f"the backbone {spec.backbone}")
        preprocessing = {
            "inside": False,
            "range": "RGB in [0, 1], then minus mean, divided by std; sides are multiples of multiple",
            "mean": backbone.mean.flatten().tolist(),
            "std": backbone.std.flatten().tolist(),
            "multiple": backbone.multiple,
        }
        if isinstance(spec, SegmenterSpec):
            assert isinstance(model, Segmenter)
            recipe = {"smp": _smp_recipe(spec, name, options), "preprocessing": preprocessing}
            return cls(model, _smp_state(model, spec), recipe)
        arguments = {"features_only": True, "output_stride": spec.output_stride, **options}
        arguments["out_indices"] = list(spec.layers)
        recipe = {"timm": {"name": name, "arguments": arguments}, "preprocessing": preprocessing}
        state = {n.replace("backbone.network.", "backbone."): v for n, v in model.state_dict().items()}
        return cls(model, state, recipe)

    def save(self, file: Path, description: dict[str, Any]) -> float:
        """Write a safetensors file with the description, to which the recipe is added, in its metadata.

        Returns:
            The largest difference of the logits or class maps that the plain code gives from ours.

        Raises:
            UserError: the plain code computes something else.
        """
        description |= self.recipe
        tensors = {name: value.contiguous() for name, value in self.state.items()}
        save_file(tensors, file, {METADATA_KEY: json.dumps(description, ensure_ascii=False)})
        plain = self._load(load_file(file)).eval()
        mean, std = (torch.tensor(self.recipe["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))

        def theirs(images: Tensor) -> dict[str, Tensor]:
            return {"logits": plain((to_float(images) - mean) / std)}

        return largest_difference(self._ours, theirs, check_images(_CHECKED_AT), "safetensors file")

    def _ours(self, images: Tensor) -> dict[str, Tensor]:
        if isinstance(self.model, Segmenter):
            return {"logits": self.model(to_float(images))}
        return {"logits": self.model.to_class_maps(self.model(to_float(images)).features)}

    def _load(self, state: dict[str, Tensor]) -> nn.Module:
        """The network as a user builds it, from ``recipe`` alone. Raises UserError if a library can't."""
        try:
            if "smp" in self.recipe:
                how = self.recipe["smp"]
                network: nn.Module = getattr(smp, how["class"])(**how["arguments"])
                network.load_state_dict(state)
                return network
            how = self.recipe["timm"]
            return _PlainClassifier(timm.create_model(how["name"], **how["arguments"]), state)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise _no_plain_form(f"this network ({reason})") from error


class _PlainClassifier(nn.Module):
    def __init__(self, backbone: Any, state: dict[str, Tensor]) -> None:
        super().__init__()
        prefix = "backbone."
        backbone.load_state_dict(
            {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        )
        self.backbone = backbone
        self.weights = [state["to_features.weight"], state["to_class_maps.weight"]]

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)[-1]
        return F.conv2d(F.conv2d(features, self.weights[0]).relu(), self.weights[1])


def _smp_recipe(spec: SegmenterSpec, timm_name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Class of smp and its arguments, after which the network has no resizing at its end."""
    if spec.architecture not in _CLASSES:
        raise _no_plain_form(f"the architecture {spec.architecture}")
    arguments: dict[str, Any] = {
        "encoder_name": f"tu-{timm_name}",
        "encoder_weights": None,
        "classes": 1 + len(spec.class_names),
        **options,
    }
    if spec.architecture.startswith("deeplab"):
        arguments |= {
            "encoder_output_stride": spec.output_stride,
            "decoder_channels": spec.aspp_dim,
            "decoder_atrous_rates": list(spec.atrous_rates),
            "upsampling": 1,
        }
    elif spec.architecture == "unet":
        arguments["decoder_channels"] = [max(1, spec.aspp_dim >> k) for k in range(5)]
    else:
        width = "decoder_channels" if spec.architecture == "upernet" else "decoder_segmentation_channels"
        arguments |= {width: spec.aspp_dim, "upsampling": 1}
    return {"class": _CLASSES[spec.architecture], "arguments": arguments}


def _smp_state(model: Segmenter, spec: SegmenterSpec) -> dict[str, Tensor]:
    names = {"backbone.network.": "encoder.model.", "head.": "segmentation_head.0."}
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        state[name] = value
    if spec.architecture == "unet":
        # smp's U-Net ends in a 3x3 convolution, of which ours is the centre.
        state["segmentation_head.0.weight"] = F.pad(state["segmentation_head.0.weight"], (1, 1, 1, 1))
    return state


def _no_plain_form(what: str) -> UserError:
    return UserError(
        f"segmentation-models-pytorch and timm have no plain form of {what}; expected --format torch-export "
        "or onnx"
    )
