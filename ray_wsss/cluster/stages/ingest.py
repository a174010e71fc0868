"""Ingest on Ray: one task for each shard."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Dataset, TaskPoolStrategy

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
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import (
    ORDER_SEED,
    ROWS_PER_SHARD,
    IngestShard,
    ShardSummary,
    begin_ingest,
    describe_ingest,
    digest_labels,
    digest_source,
    finish_ingest,
    ingest_here,
    make_once,
    plan_shards,
    read_plan,
    to_json,
    to_summary,
    write_plan,
)
from ray_wsss.storage import write_json

log = logging.getLogger(__name__)


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
    inside one task, and never through Ray's object store. After an interruption, the same call keeps the
    shards that were finished (`stages.ingest.make_once`).

    Args:
        decode: how images of more than 8 bits or of many channels become RGB; by default `DecodeConfig`.
        requests_per_host: most requests to one host, or bucket, at a time, over all tasks.

    Raises:
        UserError: as `stages.ingest.begin_ingest` and `finish_ingest`.
    """
    rows = SourceRows.of(source.rows)
    source, decode = replace(source, rows=rows), decode or DecodeConfig()
    made_from = digest_source(source, decode, ROWS_PER_SHARD)
    goes_on = begin_ingest(out, made_from)
    summaries: list[ShardSummary] = []
    if rows:
        shards = write_plan(out, plan_shards(rows, ROWS_PER_SHARD, ORDER_SEED, source.clumps))
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
            # Numbers of shards alone: the driver and Ray's object store hold no rows.
            plans = ray.data.from_items([{"shard": k} for k in range(shards)], override_num_blocks=shards)
            # Without a batch size, a batch is a block.
            done = plans.map_batches(
                partial(ingest_shards, ingest=ingest, made_from=made_from),
                batch_size=None,
                batch_format="pyarrow",
                compute=TaskPoolStrategy(tasks),
            )
            summaries, kept = collect_summaries(done, [shards], title_of(out))[0]
        if goes_on:
            log.info("kept %d of %d shards of %s, from an interrupted ingest", kept, shards, out)
    return finish_ingest(out, source, summaries, max_errors, ORDER_SEED, decode)


def ingest_once(source: Source, *, out: Path, cluster: Cluster | None) -> None:
    """`run_ingest`, unless ``out`` is the finished data set of the same images and labels.

    Args:
        cluster: None: in this process, without Ray (`stages.ingest.ingest_here`), which suits few images.

    Raises:
        UserError: ``out`` was made from other images or labels, or as `run_ingest`.
    """
    noted, labels = out / "made_from.json", digest_labels(source)
    if not (out / "metadata.json").exists():
        if cluster is None:
            metadata = ingest_here(source, out=out, max_errors=None)
        else:
            metadata = run_ingest(source, out=out, max_errors=None, cluster=cluster)
        write_json(labels, noted)
        log.info(describe_ingest(metadata, out))
    elif noted.exists() and json.loads(noted.read_text()) != labels:
        raise UserError(
            f"{out} was made from other images or labels than there are now; expected the same, or a new "
            "--out for the run"
        )
    else:
        log.info("%s is already finished", out)


def _share_requests(per_host: int) -> tuple[int, int]:
    """Number of tasks at a time, and of requests to a host that each may make at a time."""
    cpus = int(sum(node.get("CPU", 0) for node in live_nodes()))
    tasks = max(1, min(per_host, cpus))
    return tasks, per_host // tasks


def ingest_shards(plan: pa.Table, ingest: IngestShard, made_from: str) -> pa.Table:
    """Write the shards with the numbers in the column ``shard``, unless they are there; describes them."""
    done = []
    for shard in plan["shard"].to_pylist():
        rows = read_plan(ingest.out, shard)
        sources = chain.from_iterable((row.path, row.mask_path or "") for row in rows if row.error is None)
        summary, kept = make_once(ingest.out, shard, sources, partial(ingest, rows, shard), made_from)
        done.append(describe(summary, 0, shard, kept=kept))
    return pa.Table.from_pylist(done)


def describe(summary: ShardSummary, part: int, shard: int, *, kept: bool) -> dict[str, Any]:
    """Row in which a task tells the driver of a shard; ``part`` is the number of its data set."""
    return {"part": part, "shard": shard, "kept": kept, "summary": json.dumps(to_json(summary))}


def collect_summaries(
    done: Dataset, shards: Sequence[int], name: str
) -> list[tuple[list[ShardSummary], int]]:
    """Summaries of each data set's shards in order, and how many shards were there before.

    Args:
        done: rows of `describe`, in any order.
        shards: number of shards of each data set.
        name: name of the work in Ray's dashboard.
    """
    found: list[dict[int, ShardSummary]] = [{} for _ in shards]
    kept = [0] * len(shards)
    for row in iterate(done, name):
        # At once: as text, the hashes in a summary take three times the memory.
        found[row["part"]][row["shard"]] = to_summary(json.loads(row["summary"]))
        kept[row["part"]] += row["kept"]
    return [([of_part[k] for k in range(count)], k0) for of_part, count, k0 in zip(found, shards, kept)]
