"""Load of a large labelling run on the head node, the object stores, the metadata and the storage.

The figures are calculated from assumptions, each a field with its source. "Measured" means on 2 cores of an
AMD EPYC, as docs/scale.md describes; replace "assumed" values by your own.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from ray_wsss.errors import UserError
from ray_wsss.runs.read_chunks import chunks_per_plan

STORE_PUTS_PER_S = 3500
"""Writes per second that S3 accepts at least per prefix (its manual). Above, it may answer "slow down"."""
STORE_KEYS_PER_PAGE = 1000
"""Names in one page of an S3 listing."""
RAY_NODES = 3000
RAY_ACTORS = 20_000
RAY_RUNNING_TASKS = 15_000
"""Numbers of nodes, actors and running tasks that Ray's own release tests reach.

The head node had 64 CPUs and 256 GB (release/benchmarks/README.md in Ray's repository).
"""
PREPARED_AHEAD = 3
"""Decoded chunks on a node for each actor: one being processed, one queued, one being decoded."""

READS_PER_SHARD = 3
"""Reads of a shard when a run starts: its footer for the plan, footer and last bytes for the fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A cluster, a data set, and the cost of each operation. All values are more than 0."""

    images: float = 100e6
    """Number of images to label."""
    nodes: int = 1000
    """Number of nodes in the cluster, the head not counted."""
    actors_per_node: int = 1
    """Actors per node, each with one GPU."""
    images_per_s_per_actor: float = 4.0
    """Images per second of one actor.
    Assumed: SAM ViT-H on a data-centre GPU, whose encoder alone takes about 0.15 s (its authors)."""
    images_per_chunk: int = 64
    """Images per chunk, the unit of work (`runs.read_chunks.ROWS_PER_CHUNK`)."""
    images_per_shard: int = 256
    """Images per shard, a file of the data set (`stages.ingest.ROWS_PER_SHARD`)."""
    image_mb: float = 0.2
    """Size of an image file in MB. Assumed: a JPEG file as in COCO."""
    prepared_mb: float = 3.0
    """Size of a decoded image in MB.
    Calculated: SAM's input, long side 1024 px at 4:3 (2.4 MB), and a copy at 512 px (0.6 MB)."""
    label_kb: float = 10.0
    """Size of the labels written per image, in kB. Assumed."""
    driver_cpu_s_per_chunk: float = 0.008
    """CPU seconds per chunk of the driver, which schedules and can use one core.
    Measured with 8 actors at 38 chunks/s."""
    plan_s_per_chunk: float = 0.0007
    """CPU seconds to put a chunk into Ray's plan, before work on the first chunk starts. Measured."""
    plan_kb_per_chunk: float = 6.0
    """Memory of a chunk in Ray's plan, in kB. Measured: 4.8 in the driver, 1.1 in its node's object store."""
    footer_s: float = 0.03
    """Seconds to read one Parquet footer from an object store. Assumed."""
    footer_threads: int = 32
    """Footers read at the same time, as in `runs.parts`."""
    page_s: float = 0.2
    """Seconds to list one page of 1,000 names in an object store. Assumed."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and value <= 0:
                raise UserError(f"--{f.name.replace('_', '-')} is {value:g}; expected more than 0")


def project(deployment: Deployment) -> dict[str, Any]:
    """The load on each part; ``share`` is the load relative to its limit, above 1 the part is overloaded."""
    d = deployment
    actors = d.nodes * d.actors_per_node
    images_per_s = actors * d.images_per_s_per_actor
    chunks = math.ceil(d.images / d.images_per_chunk)
    shards = math.ceil(d.images / d.images_per_shard)
    chunks_per_s = images_per_s / d.images_per_chunk
    driver_cores = chunks_per_s * d.driver_cpu_s_per_chunk
    in_flight = PREPARED_AHEAD * d.actors_per_node
    planned = min(chunks, chunks_per_plan(actors))
    return {
        "run": {"images_per_s": images_per_s, "hours": d.images / images_per_s / 3600, "actors": actors},
        "head": {
            "chunks": chunks,
            "chunks_per_s": chunks_per_s,
            "driver_cores": driver_cores,
            "most_images_per_s": d.images_per_chunk / d.driver_cpu_s_per_chunk,
            "drivers": math.ceil(driver_cores),
            "plans": math.ceil(chunks / planned),
            "plan_minutes": planned * d.plan_s_per_chunk / 60,
            "plan_gb": planned * d.plan_kb_per_chunk / 1e6,
        },
        "object_store": {"gb_per_node": in_flight * d.images_per_chunk * d.prepared_mb / 1000},
        "metadata": {
            "read_dataset_hours_one_by_one": READS_PER_SHARD * shards * d.footer_s / 3600,
            "read_dataset_hours": READS_PER_SHARD * shards * d.footer_s / d.footer_threads / 3600,
            "resume_hours_one_by_one": chunks * d.footer_s / 3600,
            "resume_hours": chunks * d.footer_s / d.footer_threads / 3600,
            "list_parts_hours": math.ceil(chunks / STORE_KEYS_PER_PAGE) * d.page_s / 3600,
        },
        "storage": {
            "parts": chunks,
            "read_gb_per_s": images_per_s * d.image_mb / 1000,
            "written_tb": d.images * d.label_kb / 1e9,
            "puts_per_s": chunks_per_s,
        },
        "share": {
            "nodes": d.nodes / RAY_NODES,
            "actors": actors / RAY_ACTORS,
            "running_tasks": 2 * actors / RAY_RUNNING_TASKS,
            "driver": driver_cores,
            "puts": chunks_per_s / STORE_PUTS_PER_S,
        },
    }
