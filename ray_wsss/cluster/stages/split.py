"""Split on Ray: one task for each chunk that is read, and one for each shard that is written."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from ray_wsss.cluster.actors import chunk_of, plan_rows
from ray_wsss.cluster.connect import own_errors
from ray_wsss.cluster.growing import task_session
from ray_wsss.cluster.names import title_of
from ray_wsss.cluster.stages.ingest import collect_summaries, describe
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.resources import Cluster
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.data.source import Source
from ray_wsss.errors import UserError
from ray_wsss.runs.dependencies import warn_of_near_duplicates
from ray_wsss.runs.manifest import dataset_hash
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.stages.ingest import (
    ROWS_PER_SHARD,
    ShardSummary,
    begin_ingest,
    digest_settings,
    finish_ingest,
    make_once,
)
from ray_wsss.stages.split import CopyShard, check_fractions, describe_images, divide
from ray_wsss.storage import parse_path

log = logging.getLogger(__name__)


def run_split(
    *, dataset: Path, outs: Sequence[Path], fractions: Sequence[float], seed: int, cluster: Cluster
) -> list[DatasetMetadata]:
    """Divide the images of ``dataset`` among the new data sets ``outs``, see `stages.split.divide`.

    After an interruption, the same call keeps the shards that were finished. Warns if images of a part
    look like images of the first part, which is most likely trained on.

    Raises:
        UserError: ``dataset`` is no data set, a folder of ``outs`` is in use or named twice, or a part would
            have no image.
    """
    metadata = DatasetMetadata.load(dataset)
    check_fractions(fractions, len(outs))
    if len({out.absolute() for out in outs}) < len(outs):
        raise UserError("--out names a folder twice; expected a folder for each part")
    settings = [dataset_hash(dataset), list(fractions), seed, ROWS_PER_SHARD]
    made_from = [digest_settings([*settings, part]) for part in range(len(outs))]
    goes_on = [begin_ingest(out, digest) for out, digest in zip(outs, made_from)]
    with task_session(cluster, "split"):
        parts = divide(_describe(dataset), fractions, seed)
        for out, rows in zip(outs, parts):
            if not len(rows):
                raise UserError(
                    f"{out} would have no image; expected more images in {dataset}, or fewer parts"
                )
        copied = _copy(dataset.absolute(), [out.absolute() for out in outs], parts, made_from)
    source = Source(kind=metadata.source, class_names=metadata.class_names, rows=())
    decode = DecodeConfig.from_noted(dict(metadata.decode))  # how the images were made RGB, long before
    done = []
    for out, begun, (found, kept) in zip(outs, goes_on, copied):
        if begun:
            log.info("kept %d of %d shards of %s, from an interrupted split", kept, len(found), out)
        done.append(finish_ingest(out, source, found, order_seed=metadata.order_seed, decode=decode))
    for out in outs[1:]:
        warn_of_near_duplicates(out, outs[0])
    return done


def _describe(dataset: Path) -> pa.Table:
    """Rows of `describe_images` for the whole data set, in its order."""
    chunks = plan_chunks(dataset)
    done = plan_rows(chunks).map_batches(_describe_chunk, batch_size=None, batch_format="pyarrow")
    with own_errors():
        tables: Any = done.to_arrow_refs()
        return pa.concat_tables(ray.get(tables)).sort_by("chunk")


def _describe_chunk(plan: pa.Table) -> pa.Table:
    tables = []
    for row in range(len(plan)):
        chunk = chunk_of(plan.slice(row, 1))
        table = describe_images(chunk)
        # Sorting may reorder equal keys, so each image has a key of its own.
        tables.append(table.append_column("chunk", pa.array(chunk.index * 2**20 + np.arange(len(table)))))
    return pa.concat_tables(tables)


def _copy(
    dataset: Path, outs: Sequence[Path], parts: Sequence[NDArray[np.int64]], made_from: Sequence[str]
) -> list[tuple[list[ShardSummary], int]]:
    """Write all parts; the summaries of the shards of each, and how many were there before."""
    tasks = [
        {"part": part, "out": str(out), "shard": shard, "rows": rows[first : first + ROWS_PER_SHARD].tolist()}
        for part, (out, rows) in enumerate(zip(outs, parts))
        for shard, first in enumerate(range(0, len(rows), ROWS_PER_SHARD))
    ]
    blocks = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    copy = partial(_copy_shards, copy_shard=CopyShard(dataset), made_from=made_from)
    done = blocks.map_batches(copy, batch_size=None, batch_format="pyarrow")
    return collect_summaries(done, [-(-len(rows) // ROWS_PER_SHARD) for rows in parts], title_of(outs[0]))


def _copy_shards(tasks: pa.Table, copy_shard: CopyShard, made_from: Sequence[str]) -> pa.Table:
    done = []
    for task in tasks.to_pylist():
        out = parse_path(task["out"])
        part: int = task["part"]
        shard: int = task["shard"]
        # Without sources: the hash of the data set tells whether it has changed.
        copy = partial(copy_shard, task["rows"], out, shard)
        summary, kept = make_once(out, shard, (), copy, made_from[part])
        done.append(describe(summary, part, shard, kept=kept))
    return pa.Table.from_pylist(done)
