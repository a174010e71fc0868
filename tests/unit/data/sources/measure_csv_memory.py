"""Peak memory of reading a CSV of generated names and planning its shards; give the number of rows."""

import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ray_wsss.data.csv_labels import read_csv
from ray_wsss.stages.ingest import plan_shards


def main(rows: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TemporaryDirectory() as folder:
        table = Path(folder) / "labels.csv"
        with table.open("w") as file:
            file.writelines(
                f"https://images.example.com/{k // 1000:04d}/{k:08d}.jpg,class {k % 100}\n"
                for k in range(rows)
            )
        began = time.perf_counter()
        source = read_csv(table)
        shards = sum(1 for _ in plan_shards(source.rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - began
    memory = f"{peak / 1024:.0f} MiB at most, {before / 1024:.0f} MiB of them for imports"
    print(f"{rows} rows, {shards} shards: {memory}, {seconds:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]))
