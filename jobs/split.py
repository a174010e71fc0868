"""Split as a job on a Ray cluster; the flags are those of ``ray-wsss split``.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/split.py --dataset /mnt/data/photos --fractions 0.8 0.2 \\
        --out /mnt/data/photos_train /mnt/data/photos_val

If the job is killed, submit it again: it starts from the beginning.
"""

import sys

from ray_wsss.cli import main

if __name__ == "__main__":
    sys.exit(main(["split", *sys.argv[1:]]))
