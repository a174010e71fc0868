"""The default budgets of pixels fit a GPU with 16 GiB: computed without memory, on torch's meta device."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from segment_anything import build_sam_vit_h
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ray_wsss.config import LabelConfig, PredictConfig, SamConfig, SegmentsConfig
from ray_wsss.models.classifier import ClassifierSpec, build_classifier
from ray_wsss.models.promptable.everything import _measure, find_masks, masks_at_image_size
from ray_wsss.models.promptable.interface import Embeddings
from ray_wsss.models.sam.decoder import decode_prompts
from ray_wsss.models.sam.fast_vit import fast_forward
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.segmenter import SegmenterSpec, build_segmenter
from ray_wsss.ops.segments import paint_segments, rank_masks

GIB = 2**30
USABLE = 16 * GIB - 2 * GIB
"""Without CUDA's context and the convolutions' workspaces."""
BACKBONES = [("resnet_small", 8), ("tf_efficientnet_lite0", 16), ("resnet50", 8), ("wide_resnet38", 8)]
VIEWS = (0.5, 1.0, 1.5, 2.0)
NAMES = tuple(f"class {k}" for k in range(80))
BYTES_OF_PAIRS = 5 * 32 + 40 * 2
"""Bytes of pairs' maps per pixel of a pass: those that wait and those that are computed (`stages.label`)."""

BYTES_OF_MASKS = 14
"""Bytes per pixel of the masks that segment-everything judges or paints at a time, with the slice before."""


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch) -> None:
    """torch has no autocast for the meta device; the heads switch it off anyway."""
    monkeypatch.setattr("torch.autocast", lambda *args, **options: nullcontext())


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and that are still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return out


def bytes_of(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def bytes_per_pixel(model: nn.Module) -> float:
    """Highest number of bytes of activations per pixel of the input, which itself is not counted."""
    image = torch.empty(1, 3, 512, 512, device="meta")
    with Live() as live:
        model.eval()(image)
    return live.peak / 512**2


@pytest.fixture(scope="module")
def vit_h() -> nn.Module:
    with torch.device("meta"):
        return build_sam_vit_h()


def classifier(backbone: str, stride: int) -> nn.Module:
    spec = ClassifierSpec(class_names=NAMES, backbone=backbone, output_stride=stride, feature_dim=256)
    with torch.device("meta"):
        return build_classifier(spec)


def test_live_bytes_are_those_of_a_chain_of_tensors():
    with Live() as live:
        a = torch.empty(1000, device="meta")
        b = a + 1
        del a
        c = b.view(10, 100)  # the same storage
        del b
        d = c * 2
        del c, d
    assert live.peak == 2 * 4000


def test_wide_resnet38_takes_what_was_measured():
    """8 images of 768 x 1024 at scale 2 took 24.8 GiB on a GPU."""
    model = classifier("wide_resnet38", 8)
    assert bytes_per_pixel(model) * 8 * 768 * 1024 * 4 / GIB == pytest.approx(24.8, abs=0.5)


@pytest.mark.parametrize(("backbone", "stride"), BACKBONES)
def test_labelling_fits(vit_h, backbone, stride):
    config, model = LabelConfig(scales=VIEWS), classifier(backbone, stride)
    assert config.max_side_px**2 <= config.max_batch_pixels  # so that no image exceeds a pass
    per_pixel = bytes_per_pixel(model) + BYTES_OF_PAIRS
    assert bytes_of(model) + bytes_of(vit_h) + per_pixel * config.max_pixels_per_pass < USABLE


@pytest.mark.parametrize(("backbone", "stride"), BACKBONES)
@pytest.mark.parametrize("classes", [20, 80, 254, 1000])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)])
def test_prediction_fits(backbone, stride, classes, scales):
    config = PredictConfig(scales=scales)
    spec = SegmenterSpec(
        class_names=NAMES[:1] * classes,
        backbone=backbone,
        output_stride=stride,
        aspp_dim=256,
        atrous_rates=(6, 12, 18),
    )
    with torch.device("meta"):
        model = build_segmenter(spec).eval()
    pixels = max(config.max_batch_pixels(1 + classes), 768 * 1024)
    largest = max(1.0, *scales)
    with torch.no_grad(), Live() as live:
        model(torch.empty(1, 3, round(512 * largest), round(512 * largest), device="meta"))
    # The logits of the other views stay; those of the pixels come after the networks, a part at a time.
    kept = 4 * (1 + classes) / stride**2 * sum(scale**2 for scale in scales)
    passes = (live.peak / 512**2 + kept) * pixels
    assert bytes_of(model) + max(passes, kept * pixels + 12 * config.max_scores) < USABLE


@pytest.mark.parametrize(
    ("dtype", "batch"), [(torch.bfloat16, SamConfig().encode_batch_size), (torch.float32, 4)], ids=str
)
def test_the_encoder_of_vit_h_fits(vit_h, dtype, batch, monkeypatch):
    """With fused attention, as on GPUs: it never holds the logits of all queries and keys."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, scale: torch.empty_like(v))
    encoder, count = vit_h.image_encoder.to(dtype), 2
    with torch.no_grad(), Live() as live:
        fast_forward(encoder, torch.empty(count, 3, 1024, 1024, device="meta"))
    wide = classifier("wide_resnet38", 8)
    assert bytes_of(vit_h) + bytes_of(wide) + live.peak / count * batch < USABLE


def keep_all(side: int, max_pixels: int) -> SegmentsConfig:
    """No candidate is dropped: the most that segment-everything can have to hold."""
    return SegmentsConfig(
        points_per_side=side,
        max_pixels_per_pass=max_pixels,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=1.0,
    )


def embeddings_for(sam: SegmentAnything, images: int) -> Embeddings:
    return Embeddings(tuple(torch.randn(images, *shape) for shape in sam.map_shapes))


def test_masks_of_everything_take_14_bytes_per_pixel(tiny_sam):
    side, count = tiny_sam.image_encoder.img_size, 40
    logits, iou, points = torch.randn(count, 32, 32), torch.rand(count), torch.rand(count, 2).double()

    def peak(masks: int) -> int:
        most = masks * side**2
        with Live() as live:
            found = _measure(tiny_sam, logits, iou, points, (side, side), keep_all(4, most))
            ranks = rank_masks("smallest_area", found.areas, found.predicted_iou)
            paint_segments(masks_at_image_size(tiny_sam, found, (side, side), most), ranks, (side, side))
        return live.peak

    assert BYTES_OF_MASKS - 2 < (peak(20) - peak(10)) / (10 * side**2) <= BYTES_OF_MASKS


def test_the_candidates_of_one_image_are_in_memory_twice_at_most(tiny_sam):
    side, low = tiny_sam.image_encoder.img_size, 4 * tiny_sam.prompt_encoder.image_embedding_size[0]
    embeddings = embeddings_for(tiny_sam, 2)

    def peak(images: int) -> int:
        sizes, config = [(side, side)] * images, keep_all(10, 2 * side**2)
        with Live() as live:
            found = find_masks(tiny_sam, embeddings[:images], sizes, config, decode_batch_size=5)
            for masks in found:
                assert len(masks.areas) == 3 * 10**2
                del masks
        return live.peak

    of_one = 3 * 10**2 * low**2 * 4
    assert 2 * of_one < peak(1) < 2.5 * of_one  # and one pass of the decoder
    assert peak(2) < peak(1) + 0.2 * of_one


def test_segmenting_everything_fits(vit_h):
    config, sam = SegmentsConfig(), SamConfig()
    points = sam.decode_batch_size
    embeddings = torch.empty(points, 256, 64, 64, device="meta")
    with torch.no_grad(), Live() as live:
        decode_prompts(
            vit_h,
            embeddings,
            torch.empty(points, 1, 2, device="meta"),
            torch.ones(points, 1, device="meta"),
        )
    candidates = 2 * 3 * config.points_per_side**2 * 256**2 * 4
    encoded = sam.encode_batch_size * embeddings[0].numel() * 4
    masks = BYTES_OF_MASKS * max(config.max_pixels_per_pass, config.max_side_px**2)
    assert bytes_of(vit_h) + encoded + live.peak + candidates + masks < USABLE
