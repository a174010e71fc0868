"""Peak memory of an ingest's driver for a CSV of generated names; give the number of rows.

Tasks read no images here: the summaries that they would return hold as many hashes.
"""

import json
import random
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.csv_labels import read_csv
from ray_wsss.stages.ingest import (
    ROWS_PER_SHARD,
    ShardSummary,
    digest_source,
    plan_shards,
    read_plan,
    to_summary,
    write_plan,
)


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
        digest_source(source, DecodeConfig(), ROWS_PER_SHARD)
        shards = write_plan(Path(folder), plan_shards(source.rows))
        summaries = [summary_of(len(read_plan(Path(folder), shard))) for shard in range(shards)]
        assert ShardSummary.total(summaries).duplicates == 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - began
    memory = f"{peak / 1024:.0f} MiB at most, {before / 1024:.0f} MiB of them for imports"
    print(f"{rows} rows, {shards} shards: {memory}, {seconds:.0f} s")


def summary_of(images: int) -> ShardSummary:
    """The summary of a shard as it comes back from a task."""
    hashes = [random.getrandbits(63) for _ in range(images)]
    content = {"images": images, "images_with": {"7": images}, "content_hashes": hashes}
    return to_summary(json.loads(json.dumps(content | {"errors": [], "remarks": []})))


if __name__ == "__main__":
    main(int(sys.argv[1]))
