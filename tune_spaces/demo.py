r"""Learning rate, tau and warm-up length of the demo's classifier, on the demo's data.

    ray-wsss sweep --space tune_spaces/demo.py \
        --dataset demo/train --validation demo/held_out --out demo/sweep

Cost: 8 trials of 800 iterations, or of 480 if ASHA stops one; on 2 CPU cores about half an hour.
Expected: trials differ by 30 points of mIoU (CAMs, best threshold), and the best ones have a tau below 0.5.
Measured with 500 iterations, with which the best ones ended above 60 %.
"""

from ray import tune

PRESET = "demo"
SPACE = {
    "classifier.lr": tune.loguniform(1e-3, 1e-2),
    "cpm.tau": tune.uniform(0.3, 0.8),
    "cpm.warmup_iters": tune.choice([50, 100, 150, 200, 250]),
    "classifier.validate_every": 100,
    "classifier.checkpoint_every": 100,
}
METRIC = "val_miou_best_threshold"
MODE = "max"
NUM_SAMPLES = 8
# Earlier, before CPM has an effect, the length of the warm-up alone would decide which trial looks weak.
GRACE = 0.6
