"""Making segment maps as a job on a Ray cluster; the flags are those of ``ray-wsss segment-everything``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/segment_everything.py --preset coco \\
        --dataset /mnt/data/coco_train --out /mnt/runs/segments \\
        --sam-actors 4 --num-gpus-per-actor 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["segment-everything", *sys.argv[1:]]))
