"""A data set from begin to end: its folder, its shards, and what is written last."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.console import counted, tell_progress
from ray_wsss.data.learnable import unlearnable
from ray_wsss.data.reader import open_shard
from ray_wsss.data.schema import ERROR_SCHEMA, REMARK_SCHEMA, DatasetMetadata, write_table_atomically
from ray_wsss.data.source import UNLISTED, Source, describe_passed_over
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest.plan import ORDER_SEED, ROWS_PER_SHARD, plan_shards
from ray_wsss.stages.ingest.shard import IngestShard, ShardSummary
from ray_wsss.storage import drop_leftovers, make_folder, remove_tree, write_json

log = logging.getLogger(__name__)


def begin_ingest(out: Path, made_from: str | None = None) -> bool:
    """Prepare the folder ``out``; returns whether finished shards of an interrupted run are kept.

    They are if that run was given the same ``made_from``. Others are deleted: a smaller rerun would keep
    some.

    Args:
        made_from: digest of everything that decides the data set; None: an interrupted run is never kept.

    Raises:
        UserError: ``out`` is a finished data set, a file, or holds files that ingest does not write.
    """
    if (out / "metadata.json").exists():
        raise UserError(f"{out} is already a data set; expected a new folder (or delete this one first)")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; expected a folder for the data set")
    foreign = [p.name for p in out.iterdir() if p.name not in _OWN_NAMES] if out.exists() else []
    foreign = [name for name in foreign if not name.endswith(".tmp")]
    if foreign:
        raise UserError(f"{out} holds other files ('{sorted(foreign)[0]}'); expected a new or empty folder")
    noted = out / "unfinished" / "made_from.json"
    (out / "remarks.parquet").unlink(missing_ok=True)
    if made_from is not None and noted.exists() and noted.read_text() == json.dumps(made_from) + "\n":
        drop_leftovers(out)
        return True
    # First of all, so that no shard of the other run is ever taken for one of this.
    remove_tree(out / "unfinished")
    remove_tree(out / "shards")
    make_folder(out / "shards")
    if made_from is not None:
        write_json(made_from, noted)
    return False


def ingest_here(source: Source, *, out: Path, max_errors: int | None) -> DatasetMetadata:
    """Write a data set in this process; its content is that of `cluster.stages.ingest.run_ingest`.

    Raises:
        UserError: as `begin_ingest` and `finish_ingest`.
    """
    begin_ingest(out)
    count = -(-len(source.rows) // ROWS_PER_SHARD)
    ingest = IngestShard(
        out, len(source.class_names), decode_mask=source.decode_mask, mask_values=source.mask_values
    )
    summaries: list[ShardSummary] = []
    for index, shard in enumerate(plan_shards(source.rows, clumps=source.clumps)):
        summaries.append(ingest(shard, index))
        tell_progress(index + 1, count)
    return finish_ingest(out, source, summaries, max_errors, ORDER_SEED)


def finish_ingest(
    out: Path,
    source: Source,
    summaries: Iterable[ShardSummary],
    max_errors: int | None = None,
    order_seed: int | None = None,
    decode: DecodeConfig | None = None,
) -> DatasetMetadata:
    """Write ``errors.parquet``, ``remarks.parquet``, then ``metadata.json``: the data set is complete.

    Warns of classes that no classifier can learn from it.

    Args:
        order_seed: seed that the rows were shuffled with; None if they are in the order of the source.
        decode: settings that the images were converted with, noted unless they are the defaults.

    Raises:
        UserError: the source lists no images, all images failed, or more than ``max_errors`` images did.
            Then errors.parquet is written, but metadata.json is not.
    """
    total = ShardSummary.total(summaries)
    path = out / "errors.parquet"
    _write_rows(total.errors, ERROR_SCHEMA, path)
    if total.remarks:
        _write_rows(total.remarks, REMARK_SCHEMA, out / "remarks.parquet")
    if not total.images and not total.errors:
        raise UserError(f"the {source.kind} source lists no images, so {out} was not made")
    first = f"{total.errors[0][1]}: {total.errors[0][2]}" if total.errors else ""
    count = len(total.errors)
    if not total.images:
        raise UserError(f"all {count} images failed, the first is {first}; {path} lists the reasons")
    if max_errors is not None and count > max_errors:
        raise UserError(
            f"{count} images failed; expected at most {max_errors}. The first is {first}; "
            f"{path} lists the reasons"
        )
    metadata = DatasetMetadata(
        class_names=tuple(source.class_names),
        source=source.kind,
        images=total.images,
        unlabelled=total.unlabelled,
        empty=total.empty,
        objects=total.objects,
        errors=count,
        has_masks=total.with_mask > 0,
        remarks=dict(sorted(Counter(remark for _, _, remark, _ in total.remarks).items())),
        passed_over=dict(source.passed_over),
        duplicates=total.duplicates,
        decode=decode.noted() if decode is not None else {},
        order_seed=order_seed,
    )
    metadata.save(out)
    remove_tree(out / "unfinished")
    labelled = total.images - total.unlabelled
    for sentence in unlearnable(total.images_with, labelled, source.class_names):
        log.warning(sentence)
    return metadata


def summarise(metadata: DatasetMetadata) -> str:
    """Counts of a data set in a few lines, for the user."""
    lines = [
        f"{counted(metadata.images, 'image')}, {metadata.unlabelled:,} without labels (unknown), "
        f"{metadata.empty:,} with none of the classes, {counted(metadata.errors, 'error')}"
    ]
    if metadata.objects:
        lines.append(f"{metadata.objects:,} objects with a box or points (label --prompts-from annotations)")
    if metadata.duplicates:
        lines.append(f"{metadata.duplicates} duplicates of others: equal files under several names")
    others = dict(metadata.passed_over)
    unlisted = others.pop(UNLISTED, 0)
    if others:
        lines.append(f"files passed over, which are no images: {describe_passed_over(others)}")
    if unlisted:
        lines.append(f"{unlisted} images in the folder passed over, since the source does not list them")
    if metadata.remarks:
        counts = (f"{count} x {remark}" for remark, count in metadata.remarks.items())
        lines.append(f"remarks: {'; '.join(counts)}")
    return "\n".join(lines)


def describe_ingest(metadata: DatasetMetadata, out: Path) -> str:
    """`summarise`, the files in ``out`` that list what failed or was unusual, and the first failure."""
    lines = [summarise(metadata)]
    if metadata.errors:
        with open_shard(out / "errors.parquet") as file:
            first = file.read().slice(0, 1).to_pylist()[0]
        lines.append(
            f"{out / 'errors.parquet'} lists the images that could not be read, and why; "
            f"the first is {first['path']}: {first['reason']}"
        )
    if metadata.remarks:
        lines.append(f"{out / 'remarks.parquet'} lists the images with remarks")
    return "\n".join(lines)


_OWN_NAMES = frozenset(("shards", "errors.parquet", "remarks.parquet", "unfinished"))


def _write_rows(rows: Sequence[tuple[str, ...]], schema: pa.Schema, path: Path) -> None:
    columns = {name: [row[k] for row in rows] for k, name in enumerate(schema.names)}
    write_table_atomically(pa.table(columns, schema=schema), path)
