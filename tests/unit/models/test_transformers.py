"""Transformers as backbones: where their features lie, layers, files, freezing, errors."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch.testing import assert_close

from ray_wsss.errors import UserError
from ray_wsss.models import backbone as backbone_module
from ray_wsss.models.backbone import Backbone, build_backbone
from ray_wsss.models.classifier import Classifier, ClassifierSpec, build_classifier
from ray_wsss.models.joined_backbone import JoinedBackbone
from ray_wsss.ops.device import has_bf16
from ray_wsss.ops.resize import resize_maps
from ray_wsss.stages.cams import find_cams

_PLAIN = {"embed_dim": 32, "depth": 3, "num_heads": 2}
_WINDOWS = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "deit": ("deit_tiny_patch16_224", _PLAIN, 16),
    "dinov2": ("vit_small_patch14_reg4_dinov2", _PLAIN, 14),
    "dinov3": ("vit_small_patch16_dinov3", _PLAIN, 16),
    "clip": ("vit_base_patch16_clip_224", _PLAIN, 16),
    "mae": ("vit_base_patch16_224.mae", _PLAIN, 16),
    "averaging": ("vit_base_patch16_224", _PLAIN | {"global_pool": "avg"}, 16),
    "siglip": ("vit_base_patch16_siglip_224", _PLAIN, 16),
    "eva02": ("eva02_tiny_patch14_224", _PLAIN, 14),
    "swin": ("swin_tiny_patch4_window7_224", _WINDOWS, 32),
    "swinv2": ("swinv2_tiny_window8_256", _WINDOWS, 32),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 16),
}
"""A narrow network of each family: its timm name, its own arguments, and its stride."""


@pytest.fixture(autouse=True, scope="module")
def narrow_networks() -> Iterator[None]:
    """`build_backbone` knows the families under their keys, as it knows ``resnet_small``."""
    with pytest.MonkeyPatch.context() as patch:
        for family, (name, options, _) in FAMILIES.items():
            patch.setitem(backbone_module._SMALL, family, (name, options))
        yield


def build(family: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    stride = FAMILIES[family][2]
    return build_backbone(family, **{"output_stride": stride, "pretrained": False} | settings).eval()


def whole_model(family: str) -> Any:
    """The timm model with its head, and with weights unlike those that it begins with."""
    name, options, _ = FAMILIES[family]
    torch.manual_seed(3)
    model: Any = timm.create_model(name, **options)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return model.eval()


def scene(height: int, width: int, top: int, left: int, side: int) -> torch.Tensor:
    images = torch.full((1, 3, height, width), 0.4)
    images[:, :, top : top + side, left : left + side] = 1
    return images


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bright_square_lies_where_it_is(family):
    """Within a cell, at every scale and mirrored: the map of what distinguishes the square peaks there."""
    backbone, stride = build(family), FAMILIES[family][2]
    height, width, side = 131, 197, max(32, stride)
    empty = torch.full((1, 3, height, width), 0.4)
    for top, left in [(height - side, width - side), (height - side - 9, 3)]:
        images, y, x = empty.clone(), top + side // 2, left + side // 2
        images[:, :, top : top + side, left : left + side] = 1
        with torch.no_grad():
            change = resize_maps(backbone(images) - backbone(empty), (height, width))
        model = Classifier(backbone, 1, 1).eval()
        model.to_features.weight.data = change[:, :, y, x, None, None]
        model.to_class_maps.weight.data.fill_(1)
        for scales in [(1.0,), (1.5, 0.75)]:
            cams = find_cams(model, images, torch.ones(1, 1), scales=scales, flip=True)
            peak = (cams.cam[0] > 0.99 * cams.cam.max()).nonzero().float().mean(0)
            off = (peak - torch.tensor([y, x])).abs().max()
            # Of a padded map that is stretched over the image, more would be lost in the lower right corner.
            allowed = 0.8 if backbone.multiple > 1 else 1.0
            assert off <= allowed * stride / min(scales), (top, left, scales)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trained_weight_has_a_gradient(family):
    """Else DistributedDataParallel waits for it in vain. With ``norm``, no batch norm has one."""
    backbone = build(family)
    backbone(torch.rand(1, 3, 70, 64)).square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("convnext", "clip")])
def test_files_of_each_family(tmp_path, family):
    """The features are those of the whole model, whose positions are made for another size of image."""
    model, path = whole_model(family), tmp_path / "weights.pth"
    torch.save({"model": model.state_dict() | {"head.weight": torch.ones(3, 3)}}, path)
    backbone = build(family, pretrained=True, checkpoint=str(path))
    side = model.pretrained_cfg["input_size"][-1]
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        expected = model.forward_features((images - backbone.mean) / backbone.std)
        features = backbone(images)
    if FAMILIES[family][2] < 32:  # tokens, of which the first are no cells
        norm = model.fc_norm if isinstance(model.norm, torch.nn.Identity) else torch.nn.Identity()
        cells = norm(expected)[:, model.num_prefix_tokens :]
        expected = cells.transpose(1, 2).unflatten(2, features.shape[2:])
    elif expected.shape[-1] == features.shape[1]:
        expected = expected.permute(0, 3, 1, 2)
    assert_close(features, expected, rtol=1e-3, atol=1e-4)
    assert features.std() > 1e-2


def test_a_file_of_openai_has_other_names(tmp_path):
    """CLIP's visual tower as OpenAI wrote it: one tensor for the queries, keys and values."""
    model, path = whole_model("clip"), tmp_path / "weights.pth"
    theirs = {"text.something": torch.zeros(1)}
    for name, value in model.state_dict().items():
        theirs[_openai_name(name)] = value
    theirs["visual.class_embedding"] = theirs["visual.class_embedding"][0, 0]
    theirs["visual.positional_embedding"] = theirs["visual.positional_embedding"][0]
    torch.save(theirs, path)
    backbone = build("clip", pretrained=True, checkpoint=str(path))
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_features((images - backbone.mean) / backbone.std)[:, 1:]
        assert_close(backbone(images).flatten(2).transpose(1, 2), expected, rtol=1e-3, atol=1e-4)


def _openai_name(name: str) -> str:
    renamed = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre",
        "blocks": "transformer.resblocks",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for ours, openai in renamed.items():
        name = name.replace(ours, openai)
    return "visual." + (name if "ln_" in name or "blocks" in name else name.replace("norm.", "ln_post."))


def test_a_file_that_lacks_a_part_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    state = whole_model("dinov2").state_dict()
    del state["blocks.1.mlp.fc1.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"not fit the backbone: .*blocks\.1\.mlp\.fc1.weight is missing"):
        build("dinov2", pretrained=True, checkpoint=str(path))


@pytest.mark.parametrize(("family", "layers"), [("dinov2", (0, -1)), ("deit", (1, 2)), ("swin", (-2, -1))])
def test_features_of_several_layers(family, layers):
    """Concatenated. The final norm applies to each block, or to the last stage; later ones have none."""
    stride = 16 if family == "swin" else FAMILIES[family][2]
    images = torch.rand(1, 3, 4 * stride, 6 * stride)
    both = build(family, layers=layers, output_stride=stride)
    parts = []
    with torch.no_grad():
        for layer in layers:
            own = 32 if (family, layer) == ("swin", -1) else stride
            one = build(family, layers=(layer,), output_stride=own)
            one.load_state_dict(both.state_dict(), strict=False)
            parts.append(torch.nn.functional.interpolate(one(images), (4, 6), mode="bilinear"))
        assert_close(both(images), torch.cat(parts, 1), rtol=1e-4, atol=1e-5)
    assert both.out_channels == sum(part.shape[1] for part in parts)


def test_layers_after_the_last_one_are_not_computed():
    assert len(build("deit", layers=(0,)).stages()) == 2
    assert len(build("deit").stages()) == 4


def test_convolutional_layers():
    backbone = build_backbone("resnet_small", output_stride=8, pretrained=False, layers=(-3, -1)).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone.network((images - backbone.mean) / backbone.std)
        assert_close(backbone(images), torch.cat(maps, 1))
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (8, 12)]


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("dinov2", {"output_stride": 16}, r"have 14 pixels per cell; expected output_stride 14$"),
        (
            "swin",
            {"output_stride": 16},
            "have 32 pixels per cell; expected output_stride 32, or other layers",
        ),
        (
            "swin",
            {"output_stride": 4, "layers": (-2, -1)},
            "have 16 and 32 .* output_stride 16 or 32, or other",
        ),
        ("deit", {"layers": (3,)}, "layers are 3; expected numbers from -3 to 2 for deit_tiny_patch16_224"),
    ],
)
def test_strides_and_layers_that_can_not_be_had(family, settings, message):
    with pytest.raises(UserError, match=message):
        build(family, **settings)


def test_two_networks_give_the_features_of_both():
    """At the size of the first's map; the second has a stride of its own."""
    spec = ClassifierSpec(class_names=("a", "b"), backbone="deit+dinov2", output_stride=16, feature_dim=4)
    model = build_classifier(spec).eval()
    both = model.backbone
    assert isinstance(both, JoinedBackbone)
    images = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        first, second = (part(images) for part in both.backbones)
        expected = torch.nn.functional.interpolate(second, (6, 8), mode="bilinear", antialias=True)
        assert_close(both(images), torch.cat([first, expected], 1))
    assert second.shape[2:] == (7, 9)
    assert [len(stage) > 0 for stage in both.stages()] == [True] * 4
    model(images, torch.tensor([[0, 1]])).class_maps.square().sum().backward()
    trained = [name for name, p in both.named_parameters() if p.grad is None]
    assert trained == []
    both.freeze(1, norm=True)
    frozen = {name.split(".", 4)[4] for name, p in both.named_parameters() if not p.requires_grad}
    assert {"cls_token", "blocks.0.attn.qkv.weight"} < frozen
    with pytest.raises(UserError, match=r"weights\.pth is one file, and backbone is deit\+dinov2"):
        build_classifier(spec, pretrained=True, checkpoint="weights.pth")


def test_networks_of_one_image_size_are_refused():
    message = "beit_base_patch16_224 can't be a backbone, since it takes images of one size alone"
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_backbone("beit_base_patch16_224", output_stride=16, pretrained=False)
    with pytest.raises(UserError, match="layers are -2; expected -1 for wide_resnet38"):
        build_backbone("wide_resnet38", output_stride=8, pretrained=False, layers=(-2,))


@pytest.mark.parametrize(
    ("family", "first"),
    [
        ("dinov2", {"cls_token", "reg_token", "pos_embed", "patch_embed", "blocks.0"}),
        ("swin", {"patch_embed", "layers.0"}),
    ],
)
def test_freezing_a_stage_freezes_the_stem_and_a_block(family, first):
    backbone = build(family)
    backbone.freeze(1, norm=True)
    weights = {name.removeprefix("model."): p for name, p in backbone.network.named_parameters()}
    frozen = {name for name, p in weights.items() if not p.requires_grad}
    assert frozen == {name for name in weights if name.startswith(tuple(first))}
    backbone.freeze(10, norm=True)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_frozen_backbone_has_no_graph_and_keeps_its_mode():
    backbone = build("swin")
    images = torch.rand(2, 3, 64, 64)
    expected = backbone(images)
    backbone.freeze("all", norm=False)
    backbone.train()
    features = backbone(images)  # in training, swin drops paths at random
    assert not features.requires_grad
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float()) == has_bf16(images.device)
    assert_close(features.float(), expected, rtol=0.05, atol=0.05)
