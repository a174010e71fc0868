"""SAM on the device: encoder in each precision, decoder, automatic masks, compiling, determinism."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from ray_wsss.benchmark.sam import CudaGraph, compare, encode_with
from ray_wsss.config import SamConfig, SegmentsConfig
from ray_wsss.config.promptable import MODELS
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.models.promptable.everything import find_masks, masks_at_image_size
from ray_wsss.models.promptable.prepare import prepare_images
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.decoder import decode_prompts

IMAGES = [make_scene(seed, *hw).image for seed, hw in enumerate([(64, 96), (96, 64), (96, 96), (200, 150)])]
REDUCED = ["tf32", "bf16", "fp16"]


@pytest.fixture
def sam(tiny_sam, device):
    return deepcopy(tiny_sam).to(device)


def test_the_encoder_gives_what_the_cpu_gives(tiny_sam, sam):
    here, there = SamEncoder(deepcopy(tiny_sam))(IMAGES), SamEncoder(sam)(IMAGES)
    assert_close(there.maps[0].cpu(), here.maps[0], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", REDUCED)
def test_less_precision_gives_nearly_the_same_masks(sam, precision, device):
    if device.type == "cpu" and precision == "tf32":
        pytest.skip("only GPUs have tf32")
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16 units")
    encoder = SamEncoder(deepcopy(sam), precision)
    inputs = prepare_images(sam, IMAGES)
    assert compare(sam, encoder, inputs)["mask_iou"] > 0.97


def test_images_from_the_host_and_inputs_on_the_device_agree(sam):
    encoder = SamEncoder(sam, batch_size=2)
    assert_close(encoder(IMAGES).maps, encoder.encode(prepare_images(sam, IMAGES)).maps, atol=2e-3, rtol=1e-3)


def test_twice_the_same(sam):
    encoder = SamEncoder(sam)
    assert torch.equal(*(encoder(IMAGES).maps[0] for _ in range(2)))


def test_the_decoder_gives_what_the_cpu_gives(tiny_sam, sam, device):
    (embeddings,) = SamEncoder(deepcopy(tiny_sam))(IMAGES).maps
    points = torch.rand(len(IMAGES), 3, 2, generator=torch.Generator().manual_seed(0)) * 127
    labels = torch.ones(len(IMAGES), 3)
    here = decode_prompts(tiny_sam, embeddings, points, labels)
    there = decode_prompts(sam, *(x.to(device) for x in (embeddings, points, labels)))
    for ours, theirs in zip(here, there):
        assert_close(theirs.cpu(), ours, atol=1e-2, rtol=1e-3)


def test_automatic_masks(tiny_sam, sam, device):
    config = SegmentsConfig(points_per_side=6, stability_score_thresh=0.8).suiting(MODELS["tiny"])
    embeddings = SamEncoder(deepcopy(tiny_sam))(IMAGES[:2])
    sizes = [image.shape[:2] for image in IMAGES[:2]]
    here = find_masks(tiny_sam, embeddings, sizes, config, decode_batch_size=16)
    there = find_masks(sam, embeddings.to(device), sizes, config, decode_batch_size=16)
    for ours, theirs, size in zip(here, there, sizes, strict=True):
        assert len(ours.areas) == len(theirs.areas) > 0
        masks = [
            torch.cat(list(masks_at_image_size(model, found, size, 2**20))).cpu()
            for model, found in ((tiny_sam, ours), (sam, theirs))
        ]
        assert (masks[0] == masks[1]).float().mean() > 0.9999


def test_compiled_blocks(device):
    eager = SamEncoder(build_sam(SamConfig(name="tiny")).to(device))
    compiled = load_encoder(SamConfig(name="tiny", precision="fp32", compile="on"), device)
    assert_close(compiled(IMAGES).maps, eager(IMAGES).maps, atol=5e-3, rtol=1e-3)


def test_a_cuda_graph_gives_the_same(sam, device):
    if device.type == "cpu":
        pytest.skip("only GPUs have CUDA graphs")
    encoder, inputs = SamEncoder(sam), prepare_images(sam, IMAGES)
    with torch.no_grad():
        graph = CudaGraph(encode_with(encoder))
        graph(inputs.flip(0))
        assert_close(graph(inputs), encoder.encode(inputs).maps[0])


def test_encoding_never_waits(sam, never_waits):
    encoder = SamEncoder(sam, batch_size=2)
    encoder(IMAGES)
    with never_waits:
        encoder(IMAGES)
