r"""tau alone from 0.2 to 0.9, three seeds each, to look for the paper's plateau from 0.4 to 0.7.

    ray-wsss sweep --space tune_spaces/tau.py \
        --dataset demo/train --validation demo/held_out --out demo/sweep_tau

With another data set: ``--preset voc --classifier.validate-every 52880``.

Cost: 24 trials of 800 iterations, none stopped early; on 2 CPU cores about an hour.
Expected: ``tau.png`` with a plateau. With ``--embeddings demo/embeddings --cpm.view image`` the means were
within 0.7 points for tau from 0.4 to 0.7, and 5 points lower at 0.9.
"""

from ray import tune

PRESET = "demo"
SPACE = {
    "cpm.tau": tune.grid_search([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
    "classifier.seed": tune.grid_search([0, 1, 2]),
    "classifier.validate_every": 800,
    "classifier.checkpoint_every": 100,
}
METRIC = "val_miou_best_threshold"  # as the paper measures CAMs
MODE = "max"
SCHEDULER = "none"
