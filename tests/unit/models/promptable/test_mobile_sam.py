"""MobileSAM from the authors' file: names, and the TinyViT against the authors' formulas."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from ray_wsss.config import SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.sam_family.mobile_sam import build_mobile_sam, rename_weights, untrained_mobile_sam

DEPTHS, HEADS, WINDOWS = (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
WIDTHS = (64, 128, 160, 320)


def conv_names(name: str, out: int, into: int, size: int, groups: int = 1) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.c.weight": (out, into // groups, size, size),
        **{f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")},
        f"{name}.bn.num_batches_tracked": (),
    }


def authors_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' image encoder, as in ``mobile_sam.pt``."""
    shapes = conv_names("patch_embed.seq.0", 32, 3, 3) | conv_names("patch_embed.seq.2", 64, 32, 3)
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS)):
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}"
            if stage == 0:
                shapes |= conv_names(f"{at}.conv1", 4 * width, width, 1)
                shapes |= conv_names(f"{at}.conv2", 4 * width, 4 * width, 3, groups=4 * width)
                shapes |= conv_names(f"{at}.conv3", width, 4 * width, 1)
                continue
            shapes[f"{at}.attn.attention_biases"] = (HEADS[stage], WINDOWS[stage] ** 2)
            for name, out, into in (
                ("attn.qkv", 3 * width, width),
                ("attn.proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):
                shapes |= {f"{at}.{name}.weight": (out, into), f"{at}.{name}.bias": (out,)}
            for name in ("attn.norm", "mlp.norm"):
                shapes |= {f"{at}.{name}.weight": (width,), f"{at}.{name}.bias": (width,)}
            shapes |= conv_names(f"{at}.local_conv", width, width, 3, groups=width)
        if stage < 3:
            out = WIDTHS[stage + 1]
            shapes |= conv_names(f"layers.{stage}.downsample.conv1", out, width, 1)
            shapes |= conv_names(f"layers.{stage}.downsample.conv2", out, out, 3, groups=out)
            shapes |= conv_names(f"layers.{stage}.downsample.conv3", out, out, 1)
    shapes |= {"norm_head.weight": (320,), "norm_head.bias": (320,)}
    shapes |= {"head.weight": (1000, 320), "head.bias": (1000,)}
    shapes |= {"neck.0.weight": (256, 320, 1, 1), "neck.2.weight": (256, 256, 3, 3)}
    return shapes | {f"neck.{k}.{part}": (256,) for k in (1, 3) for part in ("weight", "bias")}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights of the whole model, with the authors' names."""
    torch.manual_seed(0)
    found = {}
    for name, shape in authors_shapes().items():
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(0)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = 0.8 + 0.4 * torch.rand(shape)
        elif len(shape) < 2:
            values = 0.2 * torch.randn(shape)
        else:
            values = torch.randn(shape) * (torch.tensor(shape[1:]).prod() ** -0.5)
        found[f"image_encoder.{name}"] = values
    rest = untrained_mobile_sam().state_dict()
    return found | {k: v for k, v in rest.items() if not k.startswith("image_encoder.")}


def authors_encoder(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The authors' TinyViT and neck, written out with functions of torch alone."""
    w = {name.removeprefix("image_encoder."): values for name, values in weights.items()}

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.c.weight"]
        groups = x.shape[1] // kernel.shape[1]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, var, scale, shift = (
            w[f"{name}.bn.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def attend(x: Tensor, at: str, heads: int, window: int) -> Tensor:
        """Among the tokens of each window, (M, window, window, C)."""
        q, k, v = (
            linear(norm(x, f"{at}.norm"), f"{at}.qkv").flatten(1, 2).unflatten(-1, (heads, 3, -1)).unbind(3)
        )
        offsets: dict[tuple[int, int], int] = {}
        cells = [(a, b) for a in range(window) for b in range(window)]
        index = [
            [offsets.setdefault((abs(a - c), abs(b - d)), len(offsets)) for c, d in cells] for a, b in cells
        ]
        bias = w[f"{at}.attention_biases"][:, torch.tensor(index)]
        logits = torch.einsum("mqhc,mkhc->mhqk", q, k) * q.shape[-1] ** -0.5 + bias
        mixed = torch.einsum("mhqk,mkhc->mqhc", logits.softmax(-1), v).flatten(2)
        return linear(mixed, f"{at}.proj").unflatten(1, (window, window))

    def block(x: Tensor, at: str, stage: int) -> Tensor:
        window, height = WINDOWS[stage], x.shape[2]
        spare = -height % window
        tokens = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, spare, 0, spare))
        count = tokens.shape[1] // window
        windows = tokens.unflatten(1, (count, window)).unflatten(3, (count, window)).transpose(2, 3)
        mixed = attend(windows.flatten(0, 2), f"{at}.attn", HEADS[stage], window)
        whole = mixed.unflatten(0, (-1, count, count)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x + whole[:, :height, :height].permute(0, 3, 1, 2)
        x = conv(x, f"{at}.local_conv")
        hidden = F.gelu(linear(norm(x.permute(0, 2, 3, 1), f"{at}.mlp.norm"), f"{at}.mlp.fc1"))
        return x + linear(hidden, f"{at}.mlp.fc2").permute(0, 3, 1, 2)

    x = conv(F.gelu(conv(x, "patch_embed.seq.0", 2)), "patch_embed.seq.2", 2)
    for stage, depth in enumerate(DEPTHS):
        for k in range(depth):
            at = f"layers.{stage}.blocks.{k}"
            if stage == 0:
                inner = F.gelu(conv(F.gelu(conv(x, f"{at}.conv1")), f"{at}.conv2"))
                x = F.gelu(x + conv(inner, f"{at}.conv3"))
            else:
                x = block(x, at, stage)
        if stage < 3:
            at = f"layers.{stage}.downsample"
            x = F.gelu(conv(x, f"{at}.conv1"))
            x = conv(F.gelu(conv(x, f"{at}.conv2", 1 if stage == 2 else 2)), f"{at}.conv3")
    for k in (0, 2):
        x = F.conv2d(x, w[f"neck.{k}.weight"], padding=k // 2)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        x = x * w[f"neck.{k + 1}.weight"][:, None, None] + w[f"neck.{k + 1}.bias"][:, None, None]
    return x


@torch.no_grad()
@pytest.mark.parametrize("side", [128, 224])  # windows that do not divide the maps, and some that do
def test_the_encoder_is_the_authors(weights, side):
    sam = untrained_mobile_sam(side)
    renamed = rename_weights(weights)
    sam.load_state_dict(renamed)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected = authors_encoder(weights, x)
    (found,) = sam.eval().encode(x).maps
    assert expected.shape == (2, *sam.map_shapes[0])
    assert_close(found, expected, rtol=0, atol=1e-3)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.9999


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files(weights, suffix, tmp_path: Path):
    path = tmp_path / f"mobile_sam.{suffix}"
    torch.save(weights, path) if suffix == "pt" else save_file(weights, path)
    sam = build_mobile_sam(SamConfig(name="mobile_sam", checkpoint=str(path)))
    for name, values in rename_weights(weights).items():
        assert torch.equal(sam.state_dict()[name], values)
    assert sam.whole == 3


def test_files_that_do_not_fit(weights, tmp_path: Path):
    with pytest.raises(UserError, match=r"sam\.checkpoint is not set; expected the weights of MobileSAM"):
        build_mobile_sam(SamConfig(name="mobile_sam"))
    missing = SamConfig(name="mobile_sam", checkpoint=str(tmp_path / "no.pt"))
    with pytest.raises(UserError, match="does not exist; expected the weights of MobileSAM"):
        build_mobile_sam(missing)
    path = tmp_path / "cut.safetensors"
    save_file({k: v for k, v in weights.items() if "neck" not in k}, path)
    with pytest.raises(UserError, match=r"does not fit MobileSAM: .*neck"):
        build_mobile_sam(SamConfig(name="mobile_sam", checkpoint=str(path)))
