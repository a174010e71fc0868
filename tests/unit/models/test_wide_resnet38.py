"""WideResNet-38: the published names and shapes, the paper's blocks, strides, loading, freezing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ray_wsss.errors import UserError
from ray_wsss.models.backbone import Backbone, build_backbone
from ray_wsss.models.wide_resnet38 import BottleneckBlock, ResidualBlock

# Widths of the published network, block by block: into it, between its convolutions, out of it.
PUBLISHED = {
    "b2": (64, 128, 128),
    "b2_1": (128, 128, 128),
    "b2_2": (128, 128, 128),
    "b3": (128, 256, 256),
    "b3_1": (256, 256, 256),
    "b3_2": (256, 256, 256),
    "b4": (256, 512, 512),
    "b4_1": (512, 512, 512),
    "b4_2": (512, 512, 512),
    "b4_3": (512, 512, 512),
    "b4_4": (512, 512, 512),
    "b4_5": (512, 512, 512),
    "b5": (512, 512, 1024),
    "b5_1": (1024, 512, 1024),
    "b5_2": (1024, 512, 1024),
    "b6": (1024, 512, 1024, 2048),
    "b7": (2048, 1024, 2048, 4096),
}
PROJECTED = {"b2", "b3", "b4", "b5", "b6", "b7"}
# Stride, dilation of the first and of the second 3x3 convolution (of the only one) at output stride 8.
STRIDE_8 = dict.fromkeys(PUBLISHED, (1, 1, 1)) | {
    **dict.fromkeys(("b2", "b3", "b4"), (2, 1, 1)),
    "b5": (1, 1, 2),
    **dict.fromkeys(("b5_1", "b5_2"), (1, 2, 2)),
    **dict.fromkeys(("b6", "b7"), (1, 4, 4)),
}
State = dict[str, torch.Tensor]


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the file, but for its head."""
    convolutions, norms = {"conv1a": (64, 3, 3, 3)}, {"bn7": 4096}
    for block, widths in PUBLISHED.items():
        kernels = (3, 3) if len(widths) == 3 else (1, 3, 1)
        for branch, inside, outside, kernel in zip(("2a", "2b1", "2b2"), widths, widths[1:], kernels):
            convolutions[f"{block}.conv_branch{branch}"] = (outside, inside, kernel, kernel)
            norms[f"{block}.bn_branch{branch}"] = inside
        if block in PROJECTED:
            convolutions[f"{block}.conv_branch1"] = (widths[-1], widths[0], 1, 1)
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in convolutions.items()}
    for name, width in norms.items():
        shapes |= {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes


def published_state() -> State:
    """Tensors of one value each, which take no room, with psa's head; the batch norms have no counters."""
    shapes = published_shapes() | {"fc8.weight": (20, 4096, 1, 1)}
    return {
        name: torch.tensor(0.5 + index).expand(shape) for index, (name, shape) in enumerate(shapes.items())
    }


def on_meta(stride: int = 8) -> Backbone:
    """The network without memory or values."""
    with torch.device("meta"):
        return build_backbone("wide_resnet38", output_stride=stride, pretrained=False)


def randomise(module: nn.Module, seed: int) -> State:
    """Random parameters and running statistics; variances of activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for name, value in state.items():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif not name.endswith("num_batches_tracked"):
            low, high = (0.5, 1.5) if name.endswith(("weight", "var")) else (-0.3, 0.3)
            value.uniform_(low, high, generator=generator)
    return state


class Reference:
    """The blocks from the paper's figures in NumPy, a kernel's cell at a time; maps are (C, H, W)."""

    def __init__(self, state: State, eps: float = 1e-5) -> None:
        self.state = {name: value.numpy() for name, value in state.items()}
        self.eps = eps

    def convolve(self, x: np.ndarray, name: str, stride: int = 1, dilation: int = 1) -> np.ndarray:
        kernel = self.state[f"{name}.weight"]
        height, width = x.shape[1:]
        pad = dilation * (kernel.shape[-1] // 2)
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        total = np.zeros((len(kernel), height, width), np.float32)
        for row in range(kernel.shape[2]):
            for column in range(kernel.shape[3]):
                top, left = row * dilation, column * dilation
                seen = padded[:, top : top + height, left : left + width]
                total += np.tensordot(kernel[:, :, row, column], seen, 1)
        return total[:, ::stride, ::stride]

    def activate(self, x: np.ndarray, name: str) -> np.ndarray:
        gamma, beta, mean, var = (
            self.state[f"{name}.{leaf}"][:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum(gamma * (x - mean) / np.sqrt(var + self.eps) + beta, 0)

    def block(self, x: np.ndarray, prefix: str, stride: int, first: int, second: int) -> np.ndarray:
        activated = self.activate(x, f"{prefix}bn_branch2a")
        projected = f"{prefix}conv_branch1.weight" in self.state
        shortcut = self.convolve(activated, f"{prefix}conv_branch1", stride) if projected else x
        if f"{prefix}conv_branch2b2.weight" in self.state:
            y = self.convolve(activated, f"{prefix}conv_branch2a", stride)
            y = self.convolve(self.activate(y, f"{prefix}bn_branch2b1"), f"{prefix}conv_branch2b1", 1, second)
            y = self.convolve(self.activate(y, f"{prefix}bn_branch2b2"), f"{prefix}conv_branch2b2")
        else:
            y = self.convolve(activated, f"{prefix}conv_branch2a", stride, first)
            y = self.convolve(self.activate(y, f"{prefix}bn_branch2b1"), f"{prefix}conv_branch2b1", 1, second)
        return shortcut + y


def test_names_and_shapes_are_the_published_ones():
    network = on_meta().network
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    counters = {name for name in ours if name.endswith("num_batches_tracked")}
    assert {name: shape for name, shape in ours.items() if name not in counters} == published_shapes()
    # A training log of the field counts 105,073,984 with two norms (512, 1024) that aren't in the file.
    assert sum(value.numel() for value in network.parameters()) == 105_073_984 - 2 * (512 + 1024)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(stride):
    backbone = on_meta(stride)
    features = backbone(torch.rand(2, 3, 128, 64, device="meta"))
    assert features.shape == (2, 4096, 128 // stride, 64 // stride)
    assert backbone.out_channels == 4096


@pytest.mark.parametrize(("stride", "dilations"), [(8, {1, 2, 4}), (16, {1, 2}), (32, {1})])
def test_stride_becomes_dilation(stride, dilations):
    """The receptive field of the ImageNet network is kept: what isn't halved is dilated."""
    convolutions = [m for m in on_meta(stride).modules() if isinstance(m, nn.Conv2d)]
    assert {m.dilation[0] for m in convolutions} == dilations
    last = [m for m in convolutions if m.kernel_size == (3, 3)][-1]
    assert last.dilation[0] * stride == 32


def test_other_strides_are_user_errors():
    with pytest.raises(UserError, match="output_stride is 4; expected 8, 16 or 32 for wide_resnet38"):
        on_meta(4)


@pytest.mark.parametrize(
    ("middle", "out", "stride", "dilations"),
    [(5, 6, 1, (1, 1)), (6, 6, 1, (2, 2)), (5, 8, 1, (1, 2)), (8, 8, 2, (1, 1)), (6, 6, 2, (1, 1))],
)
def test_residual_block(middle, out, stride, dilations):
    block = ResidualBlock(6, middle, out, stride, dilations).eval()
    reference = Reference(randomise(block, 1))
    x = torch.randn(1, 6, 9, 7, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = torch.from_numpy(reference.block(x[0].numpy(), "", stride, *dilations))
        assert_close(block(x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 4), (2, 1)])
def test_bottleneck_block(stride, dilation):
    block = BottleneckBlock(6, 12, stride, dilation).eval()
    reference = Reference(randomise(block, 3))
    x = torch.randn(1, 6, 9, 7, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = torch.from_numpy(reference.block(x[0].numpy(), "", stride, dilation, dilation))
        assert_close(block(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_bottlenecks_drop_channels_by_modules_of_torch():
    """Only plain modules draw, so that whoever replaces them has all of the network's randomness."""
    dropouts = {name: m for name, m in on_meta().network.named_modules() if isinstance(m, nn.Dropout2d)}
    assert set(dropouts) == {"b6.dropout_2b1", "b6.dropout_2b2", "b7.dropout_2b1", "b7.dropout_2b2"}
    assert {m.p for m in dropouts.values()} == {0.2}
    block = BottleneckBlock(6, 12, 1, 1).eval()
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = block(x)
        block.dropout_2b1.p = block.dropout_2b2.p = 0.9
        block.dropout_2b1.train()
        block.dropout_2b2.train()
        assert not torch.equal(block(x), expected)
        for name in ("dropout_2b1", "dropout_2b2"):
            setattr(block, name, nn.Identity())
        assert torch.equal(block(x), expected)


def test_forward_is_the_papers_at_output_stride_8():
    backbone = build_backbone("wide_resnet38", output_stride=8, pretrained=False).eval()
    reference = Reference(randomise(backbone.network, 6))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)[..., None, None]
    x = reference.convolve((image[0].numpy() - mean) / std, "conv1a")
    for name, (stride, first, second) in STRIDE_8.items():
        x = reference.block(x, f"{name}.", stride, first, second)
    with torch.no_grad():
        ours = backbone(image)
    expected = torch.from_numpy(reference.activate(x, "bn7"))
    assert expected.shape == (4096, 8, 8)
    assert 0.2 < (expected > 0).float().mean() < 0.8
    # Activations reach thousands here, and rounding goes by the largest.
    assert (ours[0] - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as before PyTorch 1.6"])
def test_published_weights_load_from_a_path(tmp_path, zipped):
    state = published_state()
    path = tmp_path / "res38_cls.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 2**20
    backbone = build_backbone("wide_resnet38", output_stride=16, pretrained=True, checkpoint=str(path))
    loaded = backbone.network.state_dict()
    assert all(bool((loaded[name] == state[name].flatten()[0]).all()) for name in published_shapes())


@pytest.mark.parametrize("key", ["conv1a.weight", "b4_5.bn_branch2b1.running_var", "bn7.bias"])
def test_a_missing_tensor_is_named(tmp_path, key):
    path = tmp_path / "res38_cls.pth"
    torch.save({name: value for name, value in published_state().items() if name != key}, path)
    with torch.device("meta"), pytest.raises(UserError, match=f"not fit the backbone: {key} is missing"):
        build_backbone("wide_resnet38", output_stride=8, pretrained=True, checkpoint=str(path))


def test_weights_that_cannot_be_had_are_user_errors(tmp_path):
    expected = r"--classifier.backbone-checkpoint ilsvrc-cls_rna-a1_cls1000_ep-0001.pth \(res38_cls.pth"
    with pytest.raises(UserError, match=f"weights are not downloaded; expected .*{expected}"):
        build_backbone("wide_resnet38", output_stride=8, pretrained=True)
    mxnet = tmp_path / "ilsvrc-cls_rna-a1_cls1000_ep-0001.params"
    mxnet.write_bytes((0x112).to_bytes(8, "little") + bytes(64))
    with pytest.raises(UserError, match=f".params is an MXNet file; expected .*PyTorch.*{expected}"):
        build_backbone("wide_resnet38", output_stride=8, pretrained=True, checkpoint=str(mxnet))


@pytest.mark.parametrize(("stages", "blocks"), [
    (0, ()),
    (1, ("conv1a", "b2", "b2_1", "b2_2")),  # what S2C keeps
    (2, ("conv1a", "b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2")),
    (6, ("conv1a", *PUBLISHED, "bn7")),
])  # fmt: skip
@pytest.mark.parametrize("norm", [True, False])
def test_freeze(stages, blocks, norm):
    backbone = on_meta()
    backbone.freeze(stages, norm)
    frozen = {name for name, p in backbone.network.named_parameters() if not p.requires_grad}
    names = {name for name in published_shapes() if "running" not in name}
    assert frozen == {name for name in names if name.split(".")[0] in blocks or (norm and "bn" in name)}


def test_set_norm_eval():
    backbone = on_meta().train()
    backbone.set_norm_eval()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 37
    assert not any(m.training for m in norms)
    assert all(m.training for m in backbone.modules() if isinstance(m, nn.Dropout2d))
