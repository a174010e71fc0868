"""Training a classifier as a job on a Ray cluster; the flags are those of ``ray-wsss train-classifier``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/train_classifier.py --preset coco \\
        --dataset /mnt/data/coco_train --out /mnt/runs/classifier \\
        --embeddings /mnt/runs/embeddings --cpm.view image --workers 4 --gpus-per-worker 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-classifier", *sys.argv[1:]]))
