"""A sweep as a job on a Ray cluster; the flags are those of ``ray-wsss sweep``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/tune.py --space tune_spaces/voc.py --dataset /mnt/data/voc_train \\
        --validation /mnt/data/voc_val --embeddings /mnt/runs/embeddings --gpus-per-worker 1 \\
        --out /mnt/runs/sweep

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
