"""Segmenters: every decoder on the backbones that suit it, DeepLabV3 of version 0.1, refusals."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.segmentation.deeplabv3 import ASPP

from ray_wsss.errors import UserError
from ray_wsss.models import backbone as backbone_module
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec, build_segmenter
from ray_wsss.ops.resize import resize_maps

NARROW = {
    "vit": ("deit_tiny_patch16_224", {"embed_dim": 16, "depth": 4, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
    ),
}


@pytest.fixture(autouse=True, scope="module")
def narrow_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in NARROW.items():
            patch.setitem(backbone_module._SMALL, name, entry)
        yield


def build(architecture: str, backbone: str, stride: int, **settings: Any) -> Segmenter:
    torch.manual_seed(0)
    spec = {"class_names": ("a", "b"), "aspp_dim": 32, "atrous_rates": (1, 2, 3)} | settings
    return build_segmenter(
        SegmenterSpec(architecture=architecture, backbone=backbone, output_stride=stride, **spec)
    ).eval()


SUITABLE = [
    ("deeplabv3", "resnet_small", 8),
    ("deeplabv3", "vit", 16),
    ("deeplabv3", "swin", 32),
    ("deeplabv3plus", "resnet_small", 16),
    ("deeplabv3plus", "tf_efficientnet_lite0", 8),
    ("upernet", "resnet_small", 32),
    ("upernet", "swin", 32),
    ("segformer", "swin", 32),
    ("unet", "resnet_small", 32),
    ("unet", "swin", 32),
    ("dpt", "vit", 16),
]


@pytest.mark.parametrize(("architecture", "backbone", "stride"), SUITABLE)
def test_a_bright_square_changes_the_logits_where_it_is(architecture, backbone, stride):
    """More than one elsewhere does, in images whose sides suit no stride. All weights have gradients."""
    model = build(architecture, backbone, stride)
    height, width, side = 131, 165, 48
    places = [(slice(5, 5 + side), slice(8, 8 + side)), (slice(80, 80 + side), slice(110, 110 + side))]
    empty = torch.full((1, 3, height, width), 0.4)
    before = model(empty)
    assert before.shape[:2] == (1, 3)
    assert before.dtype == torch.float32
    changes = []
    for place in places:
        images = empty.clone()
        images[:, :, *place] = 1
        with torch.no_grad():
            changes.append(resize_maps(model(images) - before, (height, width)).abs().sum(1)[0])
    for own, other, place in zip(changes, reversed(changes), places):
        assert own[place].mean() > 1.2 * other[place].mean()
    before.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


class OldHead(nn.Module):
    """The head of version 0.1: torchvision's ASPP, and ours after it."""

    def __init__(self, channels: int, width: int, rates: list[int], labels: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            ASPP(channels, rates, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, labels, 1),
        )


def test_deeplabv3_of_version_0_1_loads_and_computes_the_same():
    """torchvision's layers are the reference: in evaluation, and in training with dropout."""
    model = build("deeplabv3", "resnet_small", 8)
    torch.manual_seed(5)
    old = OldHead(model.backbone.out_channels, 32, [1, 2, 3], 3)
    for value in old.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.9)
    backbone = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    model.load_state_dict(backbone | old.state_dict())
    images = torch.rand(2, 3, 64, 48)
    for mode in (False, True):
        model.train(mode)
        old.train(mode)
        torch.manual_seed(7)
        logits = model(images)
        torch.manual_seed(7)
        assert_close(logits, old.head(model.backbone.eval()(images) if not mode else model.backbone(images)))


def test_deeplabv3_begins_with_the_weights_of_version_0_1():
    """The same seed gives the same network, so that runs can be repeated."""
    model = build("deeplabv3", "resnet_small", 8)
    torch.manual_seed(0)
    backbone_module.build_backbone("resnet_small", output_stride=8, pretrained=False)
    old = OldHead(model.backbone.out_channels, 32, [1, 2, 3], 3).state_dict()
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}
    assert len(old) == len(ours)
    assert all(torch.equal(a, b) for a, b in zip(old.values(), ours.values()))


@pytest.mark.parametrize(
    ("architecture", "backbone", "stride", "message"),
    [
        ("dpt", "resnet_small", 32, "has 32 pixels per cell; expected a plain transformer"),
        ("upernet", "resnet_small", 16, "expected output_stride 32, and a backbone with maps of stride"),
        (
            "upernet",
            "vit",
            16,
            "is upernet, and vit has 16 16 16 16 pixels per cell; expected output_stride 32",
        ),
        ("deeplabv3plus", "resnet_small", 32, "expected output_stride 8 or 16"),
        ("deeplabv3plus", "wide_resnet38", 8, "wide_resnet38 has 8 pixels per cell"),
        ("hourglass", "resnet_small", 32, "architecture hourglass is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(architecture, backbone, stride, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build(architecture, backbone, stride)


def test_other_numbers_of_dilations_are_refused():
    with pytest.raises(UserError, match=r"atrous_rates of the segmenter are \(1, 2\); expected three"):
        build("deeplabv3", "resnet_small", 8, atrous_rates=(1, 2))
