"""The fast image encoder against segment_anything's own forward pass, with the same weights."""

from functools import partial
from typing import TypeVar

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.testing import assert_close

from ray_wsss.config import SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.models.promptable.interface import Embeddings
from ray_wsss.models.promptable.prepare import prepare_images
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.decoder import decode_prompts
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam.tiny import build_tiny_sam

Network = TypeVar("Network", bound=nn.Module)


def disturbed(module: Network) -> Network:
    """Relative positions begin as zeros and would hide mistakes."""
    torch.manual_seed(0)
    for parameter in module.requires_grad_(False).parameters():
        parameter += 0.02 * torch.randn(parameter.shape)
    return module.eval()


@torch.no_grad()
def assert_equals_stock(sam: SegmentAnything, inputs: torch.Tensor) -> None:
    """Embeddings and, for a few points of each image, mask logits."""
    expected, found = sam.image_encoder(inputs), SamEncoder(sam).encode(inputs).maps[0]
    assert_close(found, expected, rtol=0, atol=1e-4)
    points = sam.image_encoder.img_size * torch.rand(len(inputs), 2, 2)
    labels = torch.ones(len(inputs), 2)
    (logits, iou), (ours, our_iou) = (decode_prompts(sam, e, points, labels) for e in (expected, found))
    assert_close(ours, logits, rtol=0, atol=1e-3)
    assert_close(our_iou, iou, rtol=0, atol=1e-3)


@pytest.mark.parametrize("weights", ["shipped", "disturbed"])
def test_tiny_equals_stock(tiny_sam, weights):
    sam = tiny_sam if weights == "shipped" else disturbed(build_tiny_sam())
    assert_equals_stock(sam, prepare_images(sam, [make_scene(seed).image for seed in range(4)]))


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
@torch.no_grad()
def test_masks_in_less_precision(precision, skip_if_emulated):
    """SAM's masks of the scenes' objects and grounds, one point each."""
    skip_if_emulated(precision)
    encoder = load_encoder(SamConfig(name="tiny", precision=precision), torch.device("cpu"))
    stock = build_sam(SamConfig(name="tiny"))
    inputs = prepare_images(stock, [make_scene(seed).image for seed in range(32)])
    generator = torch.Generator().manual_seed(0)
    points, labels = 127 * torch.rand(32, 1, 2, generator=generator), torch.ones(32, 1)
    (embeddings,) = encoder.encode(inputs).maps
    assert embeddings.dtype == torch.float32
    theirs = decode_prompts(stock, stock.image_encoder(inputs), points, labels)[0] > 0
    ours = encoder.sam.decode(Embeddings((embeddings,)), points, labels)[0] > 0
    there = theirs.any(-1).any(-1)
    iou = ((ours & theirs).sum((2, 3)) / (ours | theirs).sum((2, 3)))[there]
    assert len(iou) > 64
    assert iou.mean() >= 0.99
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_vit_b_equals_stock():
    sam = disturbed(SegmentAnything.of(sam_model_registry["vit_b"]()))
    assert_equals_stock(sam, prepare_images(sam, [make_scene(0).image]))


@pytest.mark.parametrize("window", [0, 3, 5, 8])
@pytest.mark.parametrize("use_rel_pos", [True, False])
def test_windows_that_do_not_divide_the_image(window, use_rel_pos):
    """5 does not divide 8, nor does 3; heads of 6 channels are no multiple of 8 either."""
    encoder = disturbed(
        ImageEncoderViT(
            img_size=32,
            patch_size=4,
            embed_dim=18,
            depth=3,
            num_heads=3,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            use_rel_pos=use_rel_pos,
            window_size=window,
            global_attn_indexes=(1,),
            out_chans=8,
        )
    )
    sam = build_tiny_sam()
    sam.image_encoder = encoder
    inputs = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert_close(SamEncoder(sam).encode(inputs).maps[0], encoder(inputs), rtol=0, atol=1e-4)


def test_the_state_dict_stays(tiny_sam):
    sam = build_tiny_sam()
    sam.load_state_dict(tiny_sam.state_dict())
    names = list(sam.state_dict())
    SamEncoder(sam).encode(torch.zeros(1, 3, 128, 128))
    assert list(sam.state_dict()) == names
    sam.load_state_dict(tiny_sam.state_dict())


def test_weights_that_change_count(tiny_sam):
    """Nothing that depends on them is kept."""
    sam = build_tiny_sam()
    sam.load_state_dict(tiny_sam.state_dict())
    inputs = prepare_images(sam, [make_scene(0).image])
    with torch.no_grad():
        (before,) = SamEncoder(sam).encode(inputs).maps
        disturbed(sam)
        assert (SamEncoder(sam).encode(inputs).maps[0] - before).abs().max() > 0.1
        assert_close(SamEncoder(sam).encode(inputs).maps[0], sam.image_encoder(inputs), rtol=0, atol=1e-4)
