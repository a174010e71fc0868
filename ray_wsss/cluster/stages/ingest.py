"""Ingest on Ray: one task for each shard."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from ray_wsss.cluster.actors import iterate
from ray_wsss.cluster.connect import ray_session
from ray_wsss.config.resources import Cluster
from ray_wsss.data.schema import DatasetMetadata, SourceRow
from ray_wsss.data.source import Source
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
) -> DatasetMetadata:
    """Read, verify and write the images of ``source`` as a data set at ``out``, shard by shard.

    The rows are shuffled first (`stages.ingest.plan_shards`). Image bytes go from disk to shard
    inside one task, and never through Ray's object store.

    Raises:
        UserError: as `stages.ingest.begin_ingest` and `finish_ingest`.
    """
    begin_ingest(out)
    shards = plan_shards(source.rows, ROWS_PER_SHARD, ORDER_SEED)
    plan = pa.table(
        {
            "shard": list(range(len(shards))),
            "rows": [json.dumps([asdict(r) for r in shard]) for shard in shards],
        }
    )
    summaries = []
    if shards:
        ingest = IngestShard(out.absolute(), len(source.class_names))
        with ray_session(cluster.address, verbose=cluster.verbose):
            blocks = ray.data.from_arrow(plan).repartition(len(shards))
            done = blocks.map_batches(
                partial(ingest_shard, ingest=ingest), batch_size=1, batch_format="pyarrow"
            )
            results = sorted(iterate(done), key=lambda row: row["shard"])
        for row in results:
            summary = json.loads(row["summary"])
            for name in ("errors", "remarks"):
                summary[name] = [tuple(found) for found in summary[name]]
            summaries.append(ShardSummary(**summary))
    return finish_ingest(out, source, summaries, max_errors, ORDER_SEED)


def ingest_shard(plan: pa.Table, ingest: IngestShard) -> pa.Table:
    """Write the shard of a plan of one row; returns its number and summary."""
    (planned,) = plan.to_pylist()
    rows = [SourceRow(**_tuples(row)) for row in json.loads(planned["rows"])]
    summary = ingest(rows, planned["shard"])
    return pa.table({"shard": [planned["shard"]], "summary": [json.dumps(asdict(summary))]})


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row as `SourceRow` has them: JSON made lists of its tuples."""
    lists = {k: row[k] for k in ("image_labels", "stated_hw") if row[k] is not None}
    remarks = tuple(tuple(remark) for remark in row["remarks"])
    return {**row, **{k: tuple(v) for k, v in lists.items()}, "remarks": remarks}
