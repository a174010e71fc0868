"""The S2C classifier: the spatial mean of a class map is the class's logit, so the class maps are the CAM."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.config import ClassifierConfig
from ray_wsss.models.clip.dense import take_values
from ray_wsss.models.full_precision import FullPrecisionConv2d
from ray_wsss.models.joined_backbone import AnyBackbone, build_backbones


@dataclass(frozen=True)
class ClassifierOutput:
    """Outputs of one forward pass."""

    logits: Float[Tensor, "B C"]
    """Image-level logits."""
    class_maps: Float[Tensor, "B M h w"] | None
    """Class maps of the classes asked for, before ReLU and normalisation; None if none were."""
    features: Float[Tensor, "B D h w"]
    """Features from which logits and class maps are computed: non-negative, or CLIP's unit vectors."""
    cells: Float[Tensor, "B E h w"]
    """The backbone's feature map, from which the features are computed."""


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """Parameters that rebuild the network; saved beside its weights."""

    class_names: tuple[str, ...]
    backbone: str
    output_stride: int
    feature_dim: int
    layers: tuple[int, ...] = (-1,)
    """See `config.ClassifierConfig`; networks of version 0.1 had the last layer alone."""
    clip: bool = False
    """True if the features are unit vectors in the space of CLIP's texts (`models.clip`)."""

    @classmethod
    def of(cls, config: ClassifierConfig, class_names: tuple[str, ...]) -> "ClassifierSpec":
        """Spec of a classifier with these settings and classes."""
        return cls(
            class_names=class_names,
            backbone=config.backbone,
            output_stride=config.output_stride,
            feature_dim=config.feature_dim,
            layers=config.layers,
            clip=config.text_head is not None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, for JSON."""
        return asdict(self)


class Classifier(nn.Module):
    """Backbone, 1x1 convolution to features, 1x1 convolution to class maps; without biases, as in S2C.

    Args:
        unit_features: features are unit vectors, as CLIP's are, instead of ReLU's.
    """

    def __init__(
        self, backbone: AnyBackbone, feature_dim: int, num_classes: int, *, unit_features: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.unit_features = backbone, unit_features
        self.to_features = FullPrecisionConv2d(backbone.out_channels, feature_dim, 1, bias=False)
        self.to_class_maps = FullPrecisionConv2d(feature_dim, num_classes, 1, bias=False)
        # Released S2C code; torch's default has another variance.
        nn.init.xavier_uniform_(self.to_features.weight)
        nn.init.xavier_uniform_(self.to_class_maps.weight)

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        return self.to_class_maps.out_channels

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.to_class_maps.weight.device

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"] | None,
        classes: Int[Tensor, "B M"] | None = None,
        *,
        cells: Float[Tensor, "B E h w"] | None = None,
    ) -> ClassifierOutput:
        """Classify RGB images in [0, 1]. The outputs are float32, also under autocast.

        The class maps of all classes never exist: with 1,000 classes they would be far larger than the
        features. The logits are the same from pooled features, since mean and 1x1 convolution commute.

        Args:
            images: None with ``cells``.
            classes: the classes of each image to make class maps of.
            cells: the backbone's feature map, where it was computed before.
        """
        if cells is None:
            assert images is not None, "there are neither images nor their feature map"
            return self._read(self.backbone(images), classes)
        return self._read(cells, classes)

    def _read(self, cells: Float[Tensor, "B E h w"], classes: Int[Tensor, "B M"] | None) -> ClassifierOutput:
        projected = self.to_features(cells)
        features = F.normalize(projected, dim=1) if self.unit_features else F.relu(projected)
        logits = self.to_class_maps(features.mean(dim=(2, 3), keepdim=True)).flatten(1)
        class_maps = self._class_maps(features, classes) if classes is not None else None
        return ClassifierOutput(logits, class_maps, features, cells)

    def _class_maps(
        self, features: Float[Tensor, "B D h w"], classes: Int[Tensor, "B M"]
    ) -> Float[Tensor, "B M h w"]:
        """``to_class_maps`` for some classes of each image, in the type of the weights."""
        weight = self.to_class_maps.weight[classes][..., 0, 0]
        with torch.autocast(features.device.type, enabled=False):
            maps = torch.bmm(weight, features.to(weight.dtype).flatten(2))
        return maps.unflatten(2, features.shape[2:])


def build_classifier(
    spec: ClassifierSpec, *, pretrained: bool = False, checkpoint: str | None = None
) -> Classifier:
    """Build the network of ``spec``: the backbone by `build_backbones`, with a random head."""
    backbone = build_backbones(
        spec.backbone,
        output_stride=spec.output_stride,
        pretrained=pretrained,
        checkpoint=checkpoint,
        layers=spec.layers,
    )
    if spec.clip:
        take_values(backbone, spec.backbone)
    return Classifier(backbone, spec.feature_dim, len(spec.class_names), unit_features=spec.clip)
