"""A comparison of kinds of prompts as a job; the flags are those of ``ray-wsss compare-prompts``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/compare_prompts.py --preset coco --dataset /mnt/data/coco_val \\
        --classifier /mnt/runs/classifier --out /mnt/runs/prompts --sam-actors 4 --num-gpus-per-actor 1

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare-prompts", *sys.argv[1:]]))
