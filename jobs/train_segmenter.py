"""Training a segmenter as a job on a Ray cluster; the flags are those of ``ray-wsss train-segmenter``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/train_segmenter.py --preset coco \\
        --dataset /mnt/data/coco_train --labels /mnt/runs/labels \\
        --out /mnt/runs/segmenter --workers 4 --gpus-per-worker 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-segmenter", *sys.argv[1:]]))
