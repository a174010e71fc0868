"""Prediction as a job on a Ray cluster; the flags are those of ``ray-wsss predict``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/predict.py --preset coco --segmenter /mnt/runs/segmenter --images /mnt/photos \\
        --out /mnt/runs/masks

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
