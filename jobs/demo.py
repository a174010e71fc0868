"""The demo as a job on a Ray cluster; the flags are those of ``ray-wsss demo``.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/demo.py --out /mnt/runs/demo

If the job is killed, submit it again: it resumes.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
