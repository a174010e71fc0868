r"""Learning rate, tau and warm-up length of the paper's COCO recipe.

    ray-wsss embed --dataset data/coco_train --out runs/embeddings --num-gpus-per-actor 1
    ray-wsss sweep --space tune_spaces/coco.py --dataset data/coco_train --validation data/coco_val \
        --embeddings runs/embeddings --gpus-per-worker 1 --workers-per-trial 2 --out runs/sweep_coco

SAM's encoder runs once per image for all trials (cpm.view image), not on every crop of every step.

Cost: 12 trials of at most 400,000 iterations at batch 8; ASHA stops most of them at 20 %, 40 % or 80 %.
Expected: unknown, since it was not run: it needs COCO 2014 or 2017 and SAM ViT-H.
"""

from ray import tune

PRESET = "coco"
SPACE = {
    "classifier.lr": tune.loguniform(1e-3, 2e-2),
    "cpm.tau": tune.uniform(0.3, 0.8),
    # The paper's supplement has 30,000.
    "cpm.warmup_iters": tune.choice([10_000, 20_000, 30_000, 45_000]),
    "cpm.view": "image",
    "classifier.validate_every": 20_000,
    "classifier.checkpoint_every": 10_000,
}
METRIC = "val_miou_best_threshold"
MODE = "max"
NUM_SAMPLES = 12
GRACE = 0.2
