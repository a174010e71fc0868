"""Recipes by name: photos is for people's own, voc and coco are the paper's, demo is for generated scenes."""

from typing import Any, Literal

from ray_wsss.config import (
    AugmentConfig,
    ClassifierConfig,
    CpmConfig,
    EvaluateConfig,
    LabelConfig,
    PredictConfig,
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
"""Augmentation for generated scenes: no change of hue or saturation, since colour tells the classes."""

_FROM_SCRATCH: dict[str, Any] = {
    "pretrained": False,
    "output_stride": 8,
    "optimiser": "adamw",
    "lr": 3e-3,
    "head_lr_factor": 1.0,
    "weight_decay": 1e-3,
    "lr_warmup_iters": 50,
    "batch_size": 16,
    "freeze_norm": False,
    "loader_workers": 0,
    "augment": _SCENES,
}
"""Settings that the demo's classifier and segmenter share."""

PRESETS = {
    # Lengths follow from the number of images, for ten minutes or so with 300 on 2 cores.
    "photos": Recipe(
        classifier=ClassifierConfig(
            optimiser="adamw",
            lr=2e-3,
            weight_decay=1e-2,
            batch_size=16,
            epochs=12,
            min_iters=200,  # with 24 photographs, 18 iterations leave the CAMs 6 to 8 points lower
            # Without gradients of the backbone a step takes far less time.
            freeze_stages="all",
            checkpoint_every=100,
            augment=AugmentConfig(long_side_px=(192, 320), crop_px=192),
        ),
        # The frozen backbone's pass, most of a step, is made once.
        cpm=CpmConfig(view="image", warmup_epochs=6, scales=(1.0,), reuse_pass=True),
        # About the scale that the classifier was trained at.
        label=LabelConfig(scales=(1.0,), max_side_px=512),
        segmenter=SegmenterConfig(
            optimiser="adamw",
            lr=1e-4,
            weight_decay=1e-2,
            epochs=6,
            min_iters=100,  # with 24 photographs, 18 iterations leave it 9 to 15 points lower
            checkpoint_every=100,
            augment=AugmentConfig(long_side_px=(256, 512), crop_px=256, jitter=(0.3, 0.3, 0.3, 0.1)),
        ),
        predict=PredictConfig(max_side_px=512),
        # In so few epochs CPM's loss has not separated objects from background at 0.5 (docs/results.md).
        evaluate=EvaluateConfig(cam_threshold=0.3),
    ),
    "voc": Recipe(),
    "coco": Recipe(
        classifier=ClassifierConfig(lr=0.005, max_iters=400_000),  # supplement
        cpm=CpmConfig(warmup_iters=30_000),  # supplement
        # Supplement: 30 epochs, here of the 82,081 images of train2014 that have labels.
        segmenter=SegmenterConfig(max_iters=307_804),
    ),
    "demo": Recipe(
        # fp32 gives the same figures on every CPU, and the tiny SAM is fast enough with it.
        sam=SamConfig(name="tiny", precision="fp32"),
        classifier=ClassifierConfig(
            **_FROM_SCRATCH,
            # It gives the CAM as well as resnet_small does, in three quarters of the time.
            backbone="resnet_tiny",
            # With fewer iterations CPM's loss is still falling at the end, and each seed has come as far as
            # its luck took it. Other mends did not help: with half or twice the rate the loss falls no
            # faster, and an average of the weights lags behind. The gradient through the CAM's maximum
            # stays, as in the released code: without it, CPM undoes what the classification loss has taught.
            max_iters=800,
            freeze_stages=0,
            feature_dim=128,
            checkpoint_every=200,
        ),
        cpm=CpmConfig(warmup_iters=200, temperature=0.15, scales=(1.0,), reuse_pass=True),
        segments=SegmentsConfig(points_per_side=16),
        label=LabelConfig(scales=(1.0, 1.5)),
        segmenter=SegmenterConfig(
            **_FROM_SCRATCH,
            # resnet_small scores 1 point higher, and takes a quarter longer.
            backbone="resnet_tiny",
            max_iters=300,
            checkpoint_every=150,
            aspp_dim=48,
            atrous_rates=(2, 4, 6),
        ),
    ),
}
"""Recipes by name. voc and coco use a backbone whose weights come with a package."""

PresetName = Literal["photos", "voc", "coco", "demo"]
DEFAULT_PRESET: PresetName = "photos"
"""The preset of a command that names none. The form of a data set does not decide it, since most files
in COCO's form are of other photographs than COCO's."""
