"""Named recipes: voc and coco are the paper's, demo is for generated scenes."""

from typing import Any

from ray_wsss.config import (
    AugmentConfig,
    ClassifierConfig,
    CpmConfig,
    LabelConfig,
    Recipe,
    SamConfig,
    SegmenterConfig,
    SegmentsConfig,
)

_SCENES = AugmentConfig(
    long_side_px=(88, 112),
    crop_px=96,
    jitter=(0.2, 0.2, 0.0, 0.0),
    jitter_probability=0.5,
    grey_probability=0.0,
)
"""For the demo's scenes: no change of colour, since colour tells their classes."""

_FROM_SCRATCH: dict[str, Any] = {
    "backbone": "resnet_small",
    "pretrained": False,
    "output_stride": 8,
    "optimiser": "adamw",
    "lr": 3e-3,
    "weight_decay": 1e-3,
    "lr_warmup_iters": 50,
    "batch_size": 16,
    "freeze_norm": False,
    "loader_workers": 0,
    "augment": _SCENES,
}
"""What the demo's classifier and segmenter have in common."""

PRESETS = {
    "voc": Recipe(),
    "coco": Recipe(
        classifier=ClassifierConfig(lr=0.005, max_iters=400_000),  # supplement
        cpm=CpmConfig(warmup_iters=30_000),  # supplement
        # Supplement: 30 epochs, here of the 82,081 images of train2014 that have labels.
        segmenter=SegmenterConfig(max_iters=307_804),
    ),
    "demo": Recipe(
        # So that its figures are the same on every CPU; the tiny SAM is fast enough.
        sam=SamConfig(name="tiny", precision="fp32"),
        classifier=ClassifierConfig(
            **_FROM_SCRATCH,
            max_iters=500,
            freeze_stages=0,
            feature_dim=128,
            checkpoint_every=200,
        ),
        cpm=CpmConfig(warmup_iters=200, temperature=0.15, scales=(1.0,)),
        segments=SegmentsConfig(points_per_side=16),
        label=LabelConfig(scales=(1.0, 1.5)),
        segmenter=SegmenterConfig(
            **_FROM_SCRATCH,
            max_iters=300,
            checkpoint_every=150,
            aspp_dim=48,
            atrous_rates=(2, 4, 6),
        ),
    ),
}
"""By name. The paper's recipes here have a backbone that needs no network."""

DEFAULT_PRESET = "voc"
"""Of commands that are not told another one."""
