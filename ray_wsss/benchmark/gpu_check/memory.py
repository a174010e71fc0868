"""Peak memory of the defaults on a GPU, against the 16 GiB that they are calculated for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ray_wsss.config import LabelConfig, PredictConfig, SamConfig

BUDGET_GIB = 14.0
"""16 GiB without CUDA's context and the convolutions' workspaces."""
BACKBONES = (("resnet_small", 8), ("tf_efficientnet_lite0", 16), ("resnet50", 8), ("wide_resnet38", 8))


def measure_memory() -> dict[str, Any]:
    """Peak GiB of one pass at the largest default size: SAM's ViT-H, each classifier, each segmenter.

    A labelling actor holds SAM and a classifier, so its figure is the classifier's pass plus SAM's weights.
    """
    sam_gib, encoder_gib = _encoder()
    peaks = {"vit_h, a batch": encoder_gib}
    for name, stride in BACKBONES:
        peaks[f"label, {name}"] = sam_gib + _classifier(name, stride)
        peaks[f"predict, {name}, 20 classes"] = _segmenter(name, stride)
    return {
        "budget_gib": BUDGET_GIB,
        "peak_gib": peaks,
        "beyond_budget": sorted(name for name, gib in peaks.items() if gib > BUDGET_GIB),
    }


@torch.no_grad()
def _peak_gib(model: nn.Module, work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def _encoder() -> tuple[float, float]:
    """GiB of ViT-H's weights, and the peak of a batch."""
    from segment_anything import build_sam_vit_h

    from ray_wsss.models.promptable.encoder import SamEncoder
    from ray_wsss.models.promptable.precision import precision_on
    from ray_wsss.models.sam.model import SegmentAnything

    with torch.device("cuda"):
        sam = SegmentAnything.of(build_sam_vit_h())
    config = SamConfig(name="vit_h")
    encoder = SamEncoder(sam, precision_on(config, "cuda"), config.encode_batch_size)
    weights = torch.cuda.memory_allocated() / 2**30
    inputs = torch.zeros(config.encode_batch_size, 3, 1024, 1024, device="cuda")
    return weights, _peak_gib(sam, lambda: encoder.encode(inputs))


def _classifier(backbone: str, stride: int) -> float:
    from ray_wsss.models.classifier import ClassifierSpec, build_classifier

    names = tuple(f"class {k}" for k in range(80))
    spec = ClassifierSpec(class_names=names, backbone=backbone, output_stride=stride, feature_dim=256)
    with torch.device("cuda"):
        model = build_classifier(spec).eval()
    return _peak_gib(model, lambda: model(_square(LabelConfig().max_pixels_per_pass)))


def _segmenter(backbone: str, stride: int) -> float:
    from ray_wsss.models.segmenter import SegmenterSpec, build_segmenter

    names = tuple(f"class {k}" for k in range(20))
    spec = SegmenterSpec(
        class_names=names, backbone=backbone, output_stride=stride, aspp_dim=256, atrous_rates=(6, 12, 18)
    )
    with torch.device("cuda"):
        model = build_segmenter(spec).eval()
    images = _square(PredictConfig().max_batch_pixels(1 + len(names)))
    return _peak_gib(model, lambda: model(images))


def _square(pixels: float) -> torch.Tensor:
    """Images of 512 px, of as many pixels as a pass has at most."""
    return torch.zeros(max(1, int(pixels) // 512**2), 3, 512, 512, device="cuda")
