"""The report of a run as a job on a Ray cluster; the flags are those of ``ray-wsss report``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/report.py /mnt/runs --out /mnt/runs/report.html

It runs in one process, on the head's CPUs, and only reads the runs. Submitted again, it replaces the file.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
