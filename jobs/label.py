"""Labelling as a job on a Ray cluster; the flags are those of ``ray-wsss label``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/label.py --preset coco --dataset /mnt/data/coco_train --out /mnt/runs/labels \\
        --classifier /mnt/runs/classifier --sam-actors 4 --num-gpus-per-actor 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
