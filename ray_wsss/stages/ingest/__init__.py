"""Ingest: write the images of a source to Parquet shards; images that fail a check become error rows."""

from ray_wsss.stages.ingest.dataset import (
    begin_ingest,
    describe_ingest,
    finish_ingest,
    ingest_here,
    summarise,
)
from ray_wsss.stages.ingest.plan import ORDER_SEED, ROWS_PER_SHARD, plan_shards, read_plan, write_plan
from ray_wsss.stages.ingest.resume import (
    digest_labels,
    digest_settings,
    digest_source,
    make_once,
    to_json,
    to_summary,
)
from ray_wsss.stages.ingest.shard import IngestShard, ShardSummary, part_path

__all__ = [
    "ORDER_SEED",
    "ROWS_PER_SHARD",
    "IngestShard",
    "ShardSummary",
    "begin_ingest",
    "describe_ingest",
    "digest_labels",
    "digest_settings",
    "digest_source",
    "finish_ingest",
    "ingest_here",
    "make_once",
    "part_path",
    "plan_shards",
    "read_plan",
    "summarise",
    "to_json",
    "to_summary",
    "write_plan",
]
