r"""Learning rate, tau and warm-up length of the paper's VOC recipe.

    ray-wsss embed --dataset data/voc_train --out runs/embeddings --num-gpus-per-actor 1
    ray-wsss sweep --space tune_spaces/voc.py --dataset data/voc_train --validation data/voc_val \
        --embeddings runs/embeddings --gpus-per-worker 1 --out runs/sweep_voc

SAM's encoder runs once per image for all trials (cpm.view image), not on every crop of every step.

Cost: 16 trials of at most 52,880 iterations at batch 8; ASHA stops most of them at 30 % or 60 %.
Expected: unknown, since it was not run: it needs VOC 2012 and SAM ViT-H. The paper has tau = 0.5, with
similar results from 0.4 to 0.7.
"""

from ray import tune

PRESET = "voc"
SPACE = {
    "classifier.lr": tune.loguniform(5e-3, 5e-2),
    "cpm.tau": tune.uniform(0.3, 0.8),
    # 1 to 6 epochs of the 10,582 images; the released code has 2.
    "cpm.warmup_iters": tune.choice([1_322, 2_644, 5_288, 7_932]),
    "cpm.view": "image",
    "classifier.validate_every": 2_644,
    "classifier.checkpoint_every": 2_644,
}
METRIC = "val_miou_best_threshold"
MODE = "max"
NUM_SAMPLES = 16
GRACE = 0.3
