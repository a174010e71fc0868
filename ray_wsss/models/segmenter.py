"""The segmenter: a decoder of segmentation-models-pytorch on an ImageNet backbone.

Weights of whole segmenters are never used: they were trained on masks, which would break the weak-supervision
protocol.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ray_wsss.config import SegmenterConfig
from ray_wsss.errors import UserError
from ray_wsss.models.full_precision import FullPrecisionConv2d
from ray_wsss.models.joined_backbone import AnyBackbone, build_backbones
from ray_wsss.models.timm_networks import count_layers

_PYRAMIDS = ((2, 4, 8, 16, 32), (4, 8, 16, 32))
"""Pixels per cell of the feature maps that upernet, segformer and unet join."""
_OLD_NAMES = {
    "head.0.": "decoder.aspp.",
    "head.1.": "decoder.conv.",
    "head.2.": "decoder.bn.",
    "head.4.": "head.",
}
"""Names of DeepLabV3's parts in version 0.1, whose head was torchvision's, and ours."""


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec:
    """Parameters that rebuild the network; saved beside its weights."""

    class_names: tuple[str, ...]
    backbone: str
    output_stride: int
    aspp_dim: int
    atrous_rates: tuple[int, ...]
    architecture: str = "deeplabv3"
    """See `config.SegmenterConfig`; version 0.1 had no other."""

    @classmethod
    def of(cls, config: SegmenterConfig, class_names: tuple[str, ...]) -> "SegmenterSpec":
        """Spec of a segmenter with these settings and classes."""
        return cls(
            class_names=class_names,
            backbone=config.backbone,
            output_stride=config.output_stride,
            aspp_dim=config.aspp_dim,
            atrous_rates=config.atrous_rates,
            architecture=config.architecture,
        )

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, for JSON."""
        return asdict(self)


class Segmenter(nn.Module):
    """Backbone, decoder, and 1x1 convolution to K = 1 + C logits.

    Args:
        decoder: makes a map of ``width`` channels of the image's pyramid: the image, then feature maps.
    """

    def __init__(self, backbone: AnyBackbone, decoder: nn.Module, width: int, num_labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.head = FullPrecisionConv2d(width, num_labels, 1)
        self.register_load_state_dict_pre_hook(_rename_old)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K _h _w"]:
        """Logits of the decoder's cells, float32, of RGB images in [0, 1]: background, then the classes.

        A cell of deeplabv3 is as wide as the output stride, in pixels; other decoders have finer ones. The
        logits of pixels are those of the cells resized (`ops.resize.resize_maps`). With many classes they are
        large, so callers make a part at a time.
        """
        maps = self.backbone.maps(images)
        return self.head(self.decoder(_pyramid(maps, self.backbone.strides)))


def _pyramid(maps: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Feature maps as the decoders expect them: image, stride 2, 4, and so on.

    The decoders read the image's size alone, so it takes no memory here. A map that the backbone doesn't have
    at stride 2 has no channels.
    """
    first, stride = maps[0], strides[0]
    height, width = stride * first.shape[-2], stride * first.shape[-1]
    image = first.new_empty(1).expand(first.shape[0], 3, height, width)
    missing = [first.new_empty(first.shape[0], 0, height // 2, width // 2)] if stride == 4 else []
    return [image, *missing, *maps]


class _Dpt(nn.Module):
    """DPT's decoder without class tokens, and the convolution of its head."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

        super().__init__()
        # Strides of 16 for every patch: only the ratios of the four maps count.
        self.dpt = DPTDecoder(
            encoder_out_channels=channels,
            encoder_output_strides=[16] * len(channels),
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=[width] * len(channels),
            fusion_channels=width,
        )
        self.convolve = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
        )

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        maps = pyramid[1:]
        return self.convolve(self.dpt(maps, [None] * len(maps)))


def build_segmenter(
    spec: SegmenterSpec, *, pretrained: bool = False, checkpoint: str | None = None
) -> Segmenter:
    """Build the network of ``spec``: the backbone by `build_backbones`, the rest random.

    Raises:
        UserError: the backbone can't be built, or hasn't the feature maps that the architecture needs.
    """
    backbone = build_backbones(
        spec.backbone,
        output_stride=spec.output_stride,
        pretrained=pretrained,
        checkpoint=checkpoint,
        layers=_layers_of(spec),
    )
    _check_strides(spec, backbone)
    decoder, width = _build_decoder(spec, backbone)
    return Segmenter(backbone, decoder, width, 1 + len(spec.class_names))


def _layers_of(spec: SegmenterSpec) -> tuple[int, ...] | None:
    """Layers of the backbone that the decoder reads: the last, four of a plain transformer's, or all."""
    if spec.architecture == "deeplabv3":
        return (-1,)
    if spec.architecture == "dpt":
        count = count_layers(spec.backbone)
        return tuple(count * k // 4 - 1 for k in (1, 2, 3, 4)) if count else (-1,)
    return None


def _check_strides(spec: SegmenterSpec, backbone: AnyBackbone) -> None:
    """Round the backbone's images to sides that suit the decoder. Raises UserError if nothing does."""
    architecture, strides = spec.architecture, tuple(backbone.strides)
    listed = " ".join(map(str, strides))
    has = f"segmenter.architecture is {architecture}, and {spec.backbone} has {listed} pixels per cell"
    if architecture == "dpt":
        if not backbone.plain:
            raise UserError(f"{has}; expected a plain transformer, such as vit_small_patch14_dinov2")
        backbone.multiple = 2 * strides[0]
    elif architecture == "deeplabv3plus":
        if 4 not in strides[:2] or strides[-1] not in (8, 16):
            raise UserError(f"{has}; expected output_stride 8 or 16, and a backbone with a map of stride 4")
        backbone.multiple = strides[-1]
    elif architecture != "deeplabv3":
        if strides not in _PYRAMIDS:
            raise UserError(f"{has}; expected output_stride 32, and a backbone with maps of stride 4 8 16 32")
        backbone.multiple = strides[-1]


def _build_decoder(spec: SegmenterSpec, backbone: AnyBackbone) -> tuple[nn.Module, int]:
    """Decoder, and the channels of its map."""
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    width, rates = spec.aspp_dim, spec.atrous_rates
    channels = [3, *([0] if backbone.strides[0] == 4 else []), *backbone.channels]
    if spec.architecture.startswith("deeplab") and len(rates) != 3:
        raise UserError(f"atrous_rates of the segmenter are {rates}; expected three for {spec.architecture}")
    match spec.architecture:
        case "dpt":
            return _Dpt(backbone.channels, width), width
        case "deeplabv3":
            return DeepLabV3Decoder(backbone.out_channels, width, rates, False, 0.5), width
        case "deeplabv3plus":
            stride = 16 if backbone.strides[-1] == 16 else 8
            return DeepLabV3PlusDecoder(channels, 5, width, rates, stride, True, 0.5), width
        case "upernet":
            return UPerNetDecoder(channels, 5, decoder_channels=width), width
        case "segformer":
            return SegformerDecoder(channels, 5, segmentation_channels=width), width
        case "unet":
            widths = [max(1, width >> k) for k in range(5)]
            return UnetDecoder(channels, widths, 5), widths[-1]
        case unknown:
            raise UserError(f"the segmenter's architecture {unknown} is unknown to this version of ray_wsss")


def _rename_old(module: nn.Module, state: dict[str, Any], *_: object) -> None:
    """Give the tensors of a DeepLabV3 of version 0.1 the names that they have now."""
    if "head.4.weight" not in state:
        return
    for name in list(state):
        for old, new in _OLD_NAMES.items():
            if name.startswith(old):
                state[new + name.removeprefix(old)] = state.pop(name)
                break
