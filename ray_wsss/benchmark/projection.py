"""What a large labelling run asks of the head node, the object stores, the metadata and the storage.

Arithmetic on assumptions, each a field with its source: "measured" is on 2 cores of an AMD EPYC as
jobs/cluster/SCALE.md tells, the rest are assumptions to be replaced by one's own.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from ray_wsss.errors import UserError

STORE_PUTS_PER_S = 3500
"""Writes per second and prefix that S3 takes at least (its manual); above, it may answer "slow down"."""
STORE_KEYS_PER_PAGE = 1000
"""Names in an answer to a listing of S3."""
RAY_NODES = 3000
RAY_ACTORS = 20_000
RAY_RUNNING_TASKS = 15_000
"""What Ray's own release tests reach, on a head node of 64 CPUs and 256 GB (release/benchmarks/README.md)."""
PREPARED_AHEAD = 3
"""Decoded chunks on a node for each of its actors: one in work, one queued, one being made."""

READS_PER_SHARD = 3
"""When a run starts: the plan reads a shard's footer, the fingerprint its footer and its last bytes."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A cluster, a data set, and what things cost."""

    images: float = 100e6
    """To label."""
    nodes: int = 1000
    """Of the cluster, the head not counted."""
    actors_per_node: int = 1
    """GPUs, each with an actor."""
    images_per_s_per_actor: float = 4.0
    """Assumed: SAM ViT-H on a data-centre GPU, whose encoder alone takes about 0.15 s by its authors."""
    images_per_chunk: int = 64
    """As `runs.chunks.ROWS_PER_CHUNK`."""
    images_per_shard: int = 256
    """Of the data set, as `stages.ingest.ROWS_PER_SHARD`."""
    image_mb: float = 0.2
    """Assumed: a JPEG file as in COCO, in MB."""
    prepared_mb: float = 3.0
    """Of a decoded image: SAM's input, long side 1024 px at 4:3 (2.4 MB), and a copy at 512 px (0.6 MB)."""
    label_kb: float = 10.0
    """Assumed: what labelling writes of an image, in kB."""
    driver_cpu_s_per_chunk: float = 0.008
    """Measured, 8 actors at 38 chunks/s: CPU of the process that schedules. Its loop has one core."""
    plan_s_per_chunk: float = 0.0007
    """Measured: CPU of putting a chunk into Ray's plan, before the first one is worked on."""
    plan_kb_per_chunk: float = 6.0
    """Measured: a chunk in the plan, in kB: 4.8 in the driver, 1.1 in its node's object store."""
    footer_s: float = 0.03
    """Assumed: reading one footer from an object store."""
    footer_threads: int = 32
    """Footers that are read at a time, as `runs.parts`."""
    page_s: float = 0.2
    """Assumed: one page of a listing."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and value <= 0:
                raise UserError(f"--{f.name.replace('_', '-')} is {value:g}; expected more than 0")


def project(deployment: Deployment) -> dict[str, Any]:
    """The figures: what is asked of each part, and ``share`` of its limit; above 1 it gives way."""
    d = deployment
    actors = d.nodes * d.actors_per_node
    images_per_s = actors * d.images_per_s_per_actor
    chunks = math.ceil(d.images / d.images_per_chunk)
    shards = math.ceil(d.images / d.images_per_shard)
    chunks_per_s = images_per_s / d.images_per_chunk
    driver_cores = chunks_per_s * d.driver_cpu_s_per_chunk
    in_flight = PREPARED_AHEAD * d.actors_per_node
    return {
        "run": {"images_per_s": images_per_s, "hours": d.images / images_per_s / 3600, "actors": actors},
        "head": {
            "chunks": chunks,
            "chunks_per_s": chunks_per_s,
            "driver_cores": driver_cores,
            "most_images_per_s": d.images_per_chunk / d.driver_cpu_s_per_chunk,
            "drivers": math.ceil(driver_cores),
            "plan_minutes": chunks * d.plan_s_per_chunk / 60,
            "plan_gb": chunks * d.plan_kb_per_chunk / 1e6,
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
