"""Ingest on Ray: one task for each shard."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import TaskPoolStrategy

from ray_wsss.cluster.actors import iterate
from ray_wsss.cluster.capacity import live_nodes
from ray_wsss.cluster.growing import task_session
from ray_wsss.cluster.names import title_of
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.resources import Cluster
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.data.source import Source
from ray_wsss.data.sources.contents import REQUESTS_PER_HOST
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.stages.ingest import (
    ORDER_SEED,
    ROWS_PER_SHARD,
    IngestShard,
    ShardSummary,
    begin_ingest,
    finish_ingest,
    plan_shards,
)


def run_ingest(
    source: Source,
    *,
    out: Path,
    max_errors: int | None,
    cluster: Cluster,
    decode: DecodeConfig | None = None,
    requests_per_host: int = REQUESTS_PER_HOST,
) -> DatasetMetadata:
    """Read, verify and write the images of ``source`` as a data set at ``out``, shard by shard.

    The rows are shuffled first (`stages.ingest.plan_shards`). Image bytes go from disk to shard
    inside one task, and never through Ray's object store.

    Args:
        decode: how images of more than 8 bits or of many channels become RGB; by default `DecodeConfig`.
        requests_per_host: most requests to one host, or bucket, at a time, over all tasks.

    Raises:
        UserError: as `stages.ingest.begin_ingest` and `finish_ingest`.
    """
    begin_ingest(out)
    summaries = []
    if source.rows:
        rows = SourceRows.of(source.rows)
        with task_session(cluster, "ingest"):
            tasks, requests = _share_requests(requests_per_host) if rows.any_remote else (None, 1)
            ingest = IngestShard(
                out.absolute(),
                len(source.class_names),
                decode,
                decode_mask=source.decode_mask,
                mask_values=source.mask_values,
                requests_per_host=requests,
            )
            shards = plan_shards(rows, ROWS_PER_SHARD, ORDER_SEED, source.clumps)
            plans: Any = [ray.put(_plan(k, shard)) for k, shard in enumerate(shards)]
            blocks = ray.data.from_arrow_refs(plans)
            # Without a batch size, a batch is a block.
            done = blocks.map_batches(
                partial(ingest_shard, ingest=ingest),
                batch_size=None,
                batch_format="pyarrow",
                compute=TaskPoolStrategy(tasks),
            )
            results = sorted(iterate(done, title_of(out)), key=lambda row: row["shard"])
        summaries = [to_summary(row["summary"]) for row in results]
    return finish_ingest(out, source, summaries, max_errors, ORDER_SEED, decode)


def _share_requests(per_host: int) -> tuple[int, int]:
    """Number of tasks at a time, and of requests to a host that each may make at a time."""
    cpus = int(sum(node.get("CPU", 0) for node in live_nodes()))
    tasks = max(1, min(per_host, cpus))
    return tasks, per_host // tasks


def to_summary(text: str) -> ShardSummary:
    """The summary of a shard from its JSON, which made lists of its tuples, and text of a mapping's keys."""
    content = json.loads(text)
    lists = {name: [tuple(found) for found in content[name]] for name in ("errors", "remarks")}
    images_with = {int(label): count for label, count in content["images_with"].items()}
    return ShardSummary(**content | lists | {"images_with": images_with})


def _plan(index: int, rows: SourceRows) -> pa.Table:
    """The block of a shard: its rows, and the number of the shard in every row."""
    return rows.table.append_column("shard", pa.array(np.full(len(rows), index)))


def ingest_shard(plan: pa.Table, ingest: IngestShard) -> pa.Table:
    """Write the shard that a block of `_plan` describes; returns its number and summary."""
    (shard,) = plan["shard"].unique().to_pylist()
    summary = ingest(SourceRows(plan.drop_columns("shard")), shard)
    return pa.table({"shard": [shard], "summary": [json.dumps(asdict(summary))]})
