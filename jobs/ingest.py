"""Ingest as a job on a Ray cluster; the flags are those of ``ray-wsss ingest``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/ingest.py coco --images /mnt/coco/train2017 --annotations /mnt/coco/instances.json \\
        --out /mnt/data/coco_train

If the job is killed, submit it again: it starts from the beginning.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
