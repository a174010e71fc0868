"""A frozen backbone's features as a job on a Ray cluster; the flags are those of
``ray-wsss extract-features``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/extract_features.py --preset photos --dataset /mnt/data/photos --out /mnt/runs/features \\
        --actors 4 --gpus-per-actor 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract-features", *sys.argv[1:]]))
