"""An export as a job on a Ray cluster; the flags are those of ``ray-wsss export``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/export.py coco --labels /mnt/runs/labels --dataset /mnt/data/photos --out /mnt/coco

It runs in one process. If the job is killed, submit it again: it keeps the pictures that are written.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
