"""Making SAM's embeddings as a job on a Ray cluster; the flags are those of ``ray-wsss embed``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/embed.py --preset coco --dataset /mnt/data/coco_train --out /mnt/runs/embeddings \\
        --sam-actors 4 --num-gpus-per-actor 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
