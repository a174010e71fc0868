"""SAM's encoder behind its interface: any number of images, precision and compilation as settings say."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from ray_wsss.config import SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.models.promptable.precision import compiles, precision_on, why_slow
from ray_wsss.models.promptable.prepare import prepare_images, resize_like_pillow
from ray_wsss.models.sam import fast_vit
from ray_wsss.models.sam.fast_vit import _block, compile_block
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam.tiny import build_tiny_sam

SIZES_HW = [(64, 64), (64, 96), (150, 70), (128, 128), (96, 96)]
IMAGES = [make_scene(seed, *hw).image for seed, hw in enumerate(SIZES_HW)]
CPU = torch.device("cpu")


def stock(sam, images) -> torch.Tensor:
    with torch.no_grad():
        return sam.image_encoder(prepare_images(sam, images))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(tiny_sam, batch_size):
    found = SamEncoder(tiny_sam, batch_size=batch_size)(IMAGES)
    assert not found.maps[0].requires_grad
    assert_close(found.maps[0], stock(tiny_sam, IMAGES), rtol=0, atol=1e-4)


@pytest.mark.parametrize("flex", [False, True])
def test_compiled_equals_stock(tiny_sam, flex):
    """With relative positions that are not the tiny SAM's; the last batch is not full."""
    torch.manual_seed(0)
    sam = build_tiny_sam().eval().requires_grad_(False)
    sam.load_state_dict(tiny_sam.state_dict())
    for name, parameter in sam.image_encoder.named_parameters():
        if "rel_pos" in name:
            parameter += 0.1 * torch.randn_like(parameter)
    encoder = SamEncoder(sam, batch_size=3, run_block=compile_block(flex=flex))
    assert_close(encoder(IMAGES).maps[0], stock(sam, IMAGES), rtol=0, atol=1e-4)
    assert torch.equal(encoder(IMAGES[3:]).maps[0], encoder(IMAGES).maps[0][3:])


@pytest.mark.slow
def test_one_process_compiles_many(tiny_sam):
    """Beyond torch's limit of 8 compilations."""
    for size in range(1, 7):
        encoder = SamEncoder(tiny_sam, batch_size=size, run_block=compile_block(flex=False))
        assert_close(encoder(IMAGES).maps[0], stock(tiny_sam, IMAGES), rtol=0, atol=1e-4)


def test_mixed_precision_around_it_is_not_the_encoders(tiny_sam):
    encoder = SamEncoder(tiny_sam)
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder(IMAGES)
    assert torch.equal(inside.maps[0], encoder(IMAGES).maps[0])


def test_precision_by_device(monkeypatch):
    auto = SamConfig(name="tiny")
    for flags, expected in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx2": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert precision_on(auto, "cpu") == expected
        assert load_encoder(auto, CPU).precision == expected
        assert precision_on(auto, "mps") == "fp32"
    assert precision_on(SamConfig(precision="fp16"), "cuda") == precision_on(
        SamConfig(precision="fp16"), "cpu"
    )


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ((6, 1), "fp32"),
        ((7, 0), "fp32"),
        ((7, 5), "fp32"),
        ((8, 0), "bf16"),
        ((8, 9), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_precision_by_capability_of_the_gpu(gpu, expected, monkeypatch):
    """That of this process, or one that was asked elsewhere; this machine need not have a GPU."""
    auto = SamConfig(name="tiny")
    assert precision_on(auto, "cuda", gpu) == expected
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: gpu)
    assert precision_on(auto, "cuda") == expected
    chosen = SamConfig(name="tiny", precision="fp16")
    assert precision_on(chosen, "cuda") == precision_on(chosen, "cuda", gpu) == "fp16"


def test_a_gpu_without_fused_attention_is_warned_about(monkeypatch, caplog):
    for gpu in ((5, 0), (7, 5)):
        assert why_slow("fp32", gpu) is None
        assert why_slow("fp16", gpu) is None
    assert why_slow("bf16", (8, 0)) is None
    assert "7.5 has neither units nor fused attention for sam.precision bf16" in str(why_slow("bf16", (7, 5)))
    assert "3.7 has no fused attention" in str(why_slow("fp32", (3, 7)))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)  # it stays on the CPU
    gpu = torch.device("cuda")
    assert load_encoder(SamConfig(name="tiny"), gpu).precision == "fp32"
    assert not caplog.records
    load_encoder(SamConfig(name="tiny", precision="bf16"), gpu)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("Tesla T4: compute capability 7.5 has neither units")


@pytest.mark.parametrize(
    ("name", "device", "least"),
    [("vit_b", "cpu", 200), ("vit_h", "cuda", 10_000), ("tiny", "cpu", 50_000), ("tiny", "cuda", 50_000)],
)
def test_compiled_where_it_pays(name, device, least):
    auto = SamConfig(name=name)
    assert not compiles(auto, device, least - 1)
    assert compiles(auto, device, least)
    assert compiles(SamConfig(name=name, compile="on"), device, 1)
    assert not compiles(SamConfig(name=name, compile="off"), device, 10 * least)
    assert not compiles(auto, "mps", 10 * least)


def test_nothing_to_compile_with(tiny_sam, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    torch.compiler.reset()
    strict = SamEncoder(tiny_sam, batch_size=7, run_block=compile_block(flex=False))
    with pytest.raises(UserError, match=r"can't be compiled \(.*compiler.*; --sam.compile off runs it"):
        strict(IMAGES)
    lenient = SamEncoder(tiny_sam, batch_size=7, run_block=compile_block(flex=False), or_eager=True)
    with pytest.warns(UserWarning, match="it runs uncompiled, slower"):
        found = lenient(IMAGES)
    assert torch.equal(found.maps[0], SamEncoder(tiny_sam)(IMAGES).maps[0])
    with warnings.catch_warnings(action="error"):
        lenient(IMAGES)


class OutOfResources(Exception):
    """As Triton's and Inductor's errors: of no kind that torch documents."""


def fails(after: int, error: Exception):
    """A compiled block that works for a number of calls."""
    calls = iter(range(10**6))

    def run(block, *tensors):
        if next(calls) >= after:
            raise error
        return _block(block, *tensors)

    return run


def test_any_failure_of_the_first_compiled_pass_is_survived(tiny_sam):
    for after in (0, 1):  # in the first block, or in a later one
        encoder = SamEncoder(tiny_sam, run_block=fails(after, OutOfResources("shared memory")), or_eager=True)
        with pytest.warns(UserWarning, match=r"can't be compiled \(shared memory\); it runs uncompiled"):
            found = encoder(IMAGES)
        assert torch.equal(found.maps[0], SamEncoder(tiny_sam)(IMAGES).maps[0])
        assert torch.equal(encoder(IMAGES).maps[0], found.maps[0])  # without a second warning
    strict = SamEncoder(tiny_sam, run_block=fails(0, OutOfResources()))
    with pytest.raises(UserError, match=r"can't be compiled \(OutOfResources\); --sam.compile off"):
        strict(IMAGES)


def test_a_failure_after_compiled_code_has_run_is_raised(tiny_sam):
    blocks = len(tiny_sam.image_encoder.blocks)
    encoder = SamEncoder(tiny_sam, run_block=fails(blocks, OutOfResources("late")), or_eager=True)
    encoder(IMAGES)
    with pytest.raises(OutOfResources, match="late"):
        encoder(IMAGES)


@pytest.mark.parametrize("or_eager", [True, False])
def test_an_error_that_the_uncompiled_encoder_has_too_is_raised(tiny_sam, or_eager, monkeypatch):
    run = fails(0, OutOfResources("compiled"))
    encoder = SamEncoder(tiny_sam, run_block=run, or_eager=or_eager)
    monkeypatch.setattr(fast_vit, "_block", fails(0, torch.OutOfMemoryError("eager")))
    with pytest.raises(torch.OutOfMemoryError, match="eager"):
        encoder(IMAGES)
    assert encoder.run_block is run


class CopiedDtypes(TorchDispatchMode):
    """Bytes that are copied to the meta device, which stands for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and made.is_meta and not args[0].is_meta:
            self.bytes += args[0].nbytes
        return made


def test_weights_reach_the_device_in_their_precision():
    """Two bytes for each of the encoder's, so that the device never holds four."""
    sam = build_tiny_sam()
    encoder = sum(p.numel() for p in sam.image_encoder.parameters())
    total = sum(t.numel() for t in [*sam.parameters(), *sam.buffers()])
    with CopiedDtypes() as copied:
        config = SamConfig(name="tiny", precision="bf16", compile="off")
        loaded = load_encoder(config, torch.device("meta")).sam
    assert isinstance(loaded, SegmentAnything)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in loaded.image_encoder.parameters())
    assert copied.bytes == 2 * encoder + 4 * (total - encoder)


@pytest.mark.parametrize("image_hw", [(427, 640), (640, 427), (96, 96), (300, 301), (1024, 768), (7, 900)])
@pytest.mark.parametrize("side", [128, 1024])
def test_resizing_is_pillows(image_hw, side):
    """But for ties in rounding: few, and by one level."""
    noise = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:40, :40]).resize(image_hw[::-1], Image.Resampling.BICUBIC))
    for pixels in (noise, smooth):
        expected = torch.tensor(ResizeLongestSide(side).apply_image(pixels)).permute(2, 0, 1).float()
        size_hw = expected.shape[1], expected.shape[2]
        found = resize_like_pillow(torch.tensor(pixels).permute(2, 0, 1), size_hw)
        assert (found - expected).abs().max() <= 1
        assert (found != expected).float().mean() < 0.03
