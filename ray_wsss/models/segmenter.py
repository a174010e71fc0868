"""The segmenter: DeepLabV3's head (torchvision's) on an ImageNet backbone.

torchvision's segmentation weights are never used: they were trained on masks, which would break the
weak-supervision protocol.
"""

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from ray_wsss.config import SegmenterConfig
from ray_wsss.models.backbone import Backbone, build_backbone
from ray_wsss.models.full_precision import FullPrecisionConv2d


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec:
    """Parameters that rebuild the network; saved beside its weights."""

    class_names: tuple[str, ...]
    backbone: str
    output_stride: int
    aspp_dim: int
    atrous_rates: tuple[int, ...]

    @classmethod
    def of(cls, config: SegmenterConfig, class_names: tuple[str, ...]) -> "SegmenterSpec":
        """Spec of a segmenter with these settings and classes."""
        return cls(
            class_names=class_names,
            backbone=config.backbone,
            output_stride=config.output_stride,
            aspp_dim=config.aspp_dim,
            atrous_rates=config.atrous_rates,
        )

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, for JSON."""
        return asdict(self)


class Segmenter(nn.Module):
    """Backbone, atrous spatial pyramid pooling, 3x3 convolution, 1x1 convolution to K = 1 + C logits."""

    def __init__(
        self,
        backbone: Backbone,
        aspp_dim: int,
        rates: tuple[int, ...],
        num_labels: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            ASPP(backbone.out_channels, list(rates), aspp_dim),
            nn.Conv2d(aspp_dim, aspp_dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(aspp_dim),
            nn.ReLU(inplace=True),
            FullPrecisionConv2d(aspp_dim, num_labels, 1),
        )

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K _h _w"]:
        """Logits of the head's cells, float32, of RGB images in [0, 1]: background, then the classes.

        A cell is as wide as the output stride, in pixels. The logits of pixels are those of the cells resized
        (`ops.resize.resize_maps`). With many classes they are large, so callers make a part at a time.
        """
        return self.head(self.backbone(images))


def build_segmenter(
    spec: SegmenterSpec, *, pretrained: bool = False, checkpoint: str | None = None
) -> Segmenter:
    """Build the network of ``spec``: the backbone by `models.backbone.build_backbone`, with a random head."""
    backbone = build_backbone(
        spec.backbone, output_stride=spec.output_stride, pretrained=pretrained, checkpoint=checkpoint
    )
    return Segmenter(backbone, spec.aspp_dim, spec.atrous_rates, 1 + len(spec.class_names))
