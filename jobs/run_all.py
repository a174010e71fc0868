"""Every stage in turn as a job on a Ray cluster; the flags are those of ``ray-wsss run-all``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/run_all.py --preset coco --dataset /mnt/data/coco_train \\
        --validation /mnt/data/coco_val --out /mnt/runs/coco \\
        --sam-actors 4 --num-gpus-per-actor 1 --workers 4 --gpus-per-worker 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["run-all", *sys.argv[1:]]))
