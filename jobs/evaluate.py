"""An evaluation as a job on a Ray cluster; the flags are those of ``ray-wsss evaluate``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/evaluate.py --preset coco --dataset /mnt/data/coco_val --segmenter /mnt/runs/segmenter \\
        --json /mnt/runs/metrics.json

If the job is killed, submit it again: it starts from the beginning.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
