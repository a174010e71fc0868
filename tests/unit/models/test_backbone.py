"""Backbones: ImageNet weights that work offline, strides, freezing, errors."""

from typing import Any

import pytest
import skimage.data
import timm
import torch
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss.errors import UserError
from ray_wsss.models.backbone import Backbone, build_backbone
from ray_wsss.models.backbone_weights import packaged_state

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return build_backbone(LITE0, output_stride=32, pretrained=True).eval()


def photograph(name: str) -> torch.Tensor:
    """(1, 3, 224, 224) RGB in [0, 1] of a picture that comes with scikit-image."""
    pixels = torch.from_numpy(getattr(skimage.data, name)())
    pixels = pixels if pixels.ndim == 3 else pixels[..., None].expand(-1, -1, 3)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side].permute(2, 0, 1)[None].float() / 255
    return F.interpolate(square, (224, 224), mode="bilinear", antialias=True)


@pytest.mark.parametrize(
    ("name", "words"), [("cat", ("cat", "tabby")), ("coffee", ("cup", "espresso")), ("camera", ("tripod",))]
)
@pytest.mark.parametrize("backbone", [LITE0, "tf_efficientnet_lite2"])
def test_packaged_weights_know_photographs_offline(backbone, name, words):
    """The head, which the backbone drops, classifies the backbone's features: mean, std and weights fit."""
    full: Any = timm.create_model(backbone).eval()
    full.load_state_dict(packaged_state(backbone))
    with torch.no_grad():
        features = build_backbone(backbone, output_stride=32, pretrained=True).eval()(photograph(name))
        logits = full.forward_head(full.bn2(full.conv_head(features)))
    info = ImageNetInfo()
    best = info.index_to_description(int(logits.argmax()))
    assert any(word in best for word in words), best


def test_images_are_normalised_as_lite0_was_trained(lite0):
    grey = torch.full((1, 3, 64, 64), 127 / 255)
    with torch.no_grad():
        assert_close(lite0(grey), lite0.network(torch.zeros(1, 3, 64, 64))[-1])
        white = torch.full((1, 3, 64, 64), 1.0)
        assert_close(lite0(white), lite0.network(white)[-1])


@pytest.mark.parametrize("name", [LITE0, "resnet_small", "resnet_tiny"])
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(name, stride):
    backbone = build_backbone(name, output_stride=stride, pretrained=False).eval()
    features = backbone(torch.rand(2, 3, 96, 64))
    assert features.shape == (2, backbone.out_channels, 96 // stride, 64 // stride)


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "convnext_tiny", "regnety_002"])
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride_of_other_timm_families(name, stride):
    # With values, although only shapes count: timm 1.0.24 and older can't build all of these on "meta".
    backbone = build_backbone(name, output_stride=stride, pretrained=False).eval()
    features = backbone(torch.rand(2, 3, 96, 64))
    assert features.shape == (2, backbone.out_channels, 96 // stride, 64 // stride)


@pytest.mark.parametrize("name", ["vgg16", "densenet121"])
def test_a_stride_the_network_cannot_have_is_a_user_error(name):
    expected = {
        "vgg16": r"can't build vgg16 at output stride 8 \(.+\); expected a network .+ such as resnet50",
        "densenet121": r"layers of densenet121 have 32 pixels per cell; expected output_stride 32, or other",
    }[name]
    with torch.device("meta"), pytest.raises(UserError, match=expected):
        build_backbone(name, output_stride=8, pretrained=False)


@pytest.mark.parametrize("name", [LITE0, "resnet_small"])
@pytest.mark.parametrize("stages", [0, 1, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_freeze(name, stages, norm):
    backbone = build_backbone(name, output_stride=16, pretrained=False)
    backbone.freeze(stages, norm)
    backbone(torch.rand(2, 3, 64, 64)).sum().backward()
    kept, stem = {
        LITE0: ([f"blocks.{k}." for k in range(stages)], ["conv_stem.", "bn1."]),
        "resnet_small": ([f"layer{k + 1}." for k in range(stages)], ["conv1.", "bn1."]),
    }[name]
    prefixes = tuple(stem + kept) if stages else ()
    norms = {
        f"{path}.{leaf}"
        for path, module in backbone.network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    frozen = {path for path, p in backbone.network.named_parameters() if p.grad is None}
    expected = {
        path
        for path, _ in backbone.network.named_parameters()
        if (prefixes and path.startswith(prefixes)) or (norm and path in norms)
    }
    assert frozen == expected
    assert 0 < len(norms) < len(list(backbone.parameters()))


@pytest.mark.parametrize("name", [LITE0, "resnet_small"])
def test_set_norm_eval_keeps_the_running_statistics(name):
    backbone = build_backbone(name, output_stride=16, pretrained=False)
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    assert before

    def changed() -> set[str]:
        backbone(torch.rand(2, 3, 64, 64))
        return {key for key, value in before.items() if not torch.equal(backbone.state_dict()[key], value)}

    backbone.train()
    backbone.set_norm_eval()
    assert not changed()
    backbone.train()
    assert changed() == set(before)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_weights_from_a_file(tmp_path, kind):
    torch.manual_seed(5)
    source = build_backbone("resnet_small", output_stride=8, pretrained=False)
    state = source.network.state_dict() | {"fc.weight": torch.zeros(2, 2)}  # a head is left over
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"state_dict": state} if kind == "wrapped" else state, path)
    loaded = build_backbone("resnet_small", output_stride=8, pretrained=True, checkpoint=str(path))
    assert all(torch.equal(state[key], value) for key, value in loaded.network.state_dict().items())


FAMILIES = {
    "resnet": "resnet10t",
    "regnet": "regnety_002",
    "convnext": "convnext_atto",
    "efficientnet": "efficientnet_b0",
}


def whole_model(name: str) -> Any:
    """A timm model of random weights, with a head; its batch norms have statistics too."""
    torch.manual_seed(7)
    model: Any = timm.create_model(name)
    for key, value in model.state_dict().items():
        if "running_mean" in key:
            value.normal_(std=0.1)
        elif "running_var" in key:
            value.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_whole_timm_models(tmp_path, family):
    """The features equal the whole model's, whatever its feature extractor calls its parts."""
    name, path = FAMILIES[family], tmp_path / "weights.pth"
    model = whole_model(name)
    torch.save(model.state_dict(), path)
    backbone = build_backbone(name, output_stride=32, pretrained=True, checkpoint=str(path)).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.forward_intermediates(
            (images - backbone.mean) / backbone.std, indices=1, intermediates_only=True
        )[0]
        assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3
    for module in backbone.modules():
        assert getattr(module, "pretrained_cfg", {}).get("state_dict") is None


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t"])
@pytest.mark.parametrize("outer", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module._orig_mod.", ""])
def test_files_of_training_programs(tmp_path, name, outer, prefix):
    """With the prefixes of DistributedDataParallel and torch.compile, and inside an outer dict."""
    state = {f"{prefix}{key}": value for key, value in whole_model(name).state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save({outer: state, "epoch": 3} if outer else state, path)
    backbone = build_backbone(name, output_stride=16, pretrained=True, checkpoint=str(path))
    file = {value.flatten()[0].item() for value in state.values() if value.ndim > 1}
    ours = backbone.network.state_dict()
    loaded = {value.flatten()[0].item() for value in ours.values() if value.ndim > 1}
    assert len(loaded) > 5
    assert loaded < file


def test_files_that_lack_a_part_are_refused(tmp_path):
    """Also where timm renames the parts, and itself would leave the missing one random."""
    path = tmp_path / "weights.pth"
    state = whole_model("convnext_atto").state_dict()

    def build(state: dict[str, torch.Tensor]) -> None:
        torch.save(state, path)
        build_backbone("convnext_atto", output_stride=32, pretrained=True, checkpoint=str(path))

    missing = "stages.3.blocks.1.mlp.fc1.weight"
    without = {key: value for key, value in state.items() if key != missing}
    with pytest.raises(UserError, match=r"stages_3.blocks.1.mlp.fc1.weight is missing .* \(1 of \d+ tensors"):
        build(without)
    with pytest.raises(UserError, match="does not fit the backbone"):
        build(without | {missing: torch.zeros(3, 3)})
    with pytest.raises(UserError, match="does not fit the backbone"):
        build({"something.else": torch.zeros(3)})


def test_unusable_checkpoints_are_user_errors(tmp_path):
    def build(content: bytes | object, name: str = "weights.pth") -> None:
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        build_backbone("resnet_small", output_stride=8, pretrained=True, checkpoint=str(path))

    with pytest.raises(UserError, match=r"backbone_checkpoint .*weights.pth is not a file of weights"):
        build(b"")
    with pytest.raises(UserError, match="is not a file of weights"):
        build(b"text", "weights.safetensors")
    with pytest.raises(UserError, match="holds no state dict"):
        build([1])
    with pytest.raises(UserError, match=r"not fit the backbone: conv1\S* is missing or of another shape"):
        build({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"/absent.pth does not exist"):
        build_backbone("resnet_small", output_stride=8, pretrained=True, checkpoint="/absent.pth")


def test_settings_that_cannot_be_are_user_errors():
    expected = "resnet999 is neither resnet_small, resnet_tiny, wide_resnet38 nor a timm model"
    with pytest.raises(UserError, match=expected):
        build_backbone("resnet999", output_stride=8, pretrained=False)
    with pytest.raises(UserError, match="resnet_small has no ImageNet weights"):
        build_backbone("resnet_small", output_stride=8, pretrained=True)
    with pytest.raises(UserError, match="timm can't build vgg11 at output stride 8"):
        build_backbone("vgg11", output_stride=8, pretrained=False)


def test_stages_that_are_not_known_are_not_frozen_in_silence():
    vgg = build_backbone("vgg11", output_stride=32, pretrained=False)
    vgg.freeze(0, norm=True)
    with pytest.raises(UserError, match="freeze_stages is 1; expected 0 or all, since this backbone"):
        vgg.freeze(1, norm=True)


def test_regnets_stem_and_first_stage():
    regnet = build_backbone("regnety_002", output_stride=32, pretrained=False)
    regnet.freeze(1, norm=False)
    frozen = {name.split(".")[1] for name, p in regnet.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "s1"}
