"""An ingest or a split that was interrupted goes on where it stopped.

DATASET/unfinished/made_from.json          digest of everything that decides the data set
DATASET/unfinished/shards/part-00000.json  summary of a finished shard, written after the shard

The folder ``unfinished`` is removed when the data set is complete.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.schema import FORMAT_VERSION
from ray_wsss.data.source import Source
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.stages.ingest.plan import ORDER_SEED
from ray_wsss.stages.ingest.shard import ShardSummary, part_path
from ray_wsss.storage import write_json
from ray_wsss.version import __version__


def digest_source(source: Source, decode: DecodeConfig, rows_per_shard: int) -> str:
    """Hex SHA-256 of what decides the shards of a data set, the images themselves aside."""
    values = dict(source.mask_values) if source.mask_values is not None else None
    settings = [source.kind, list(source.class_names), values, repr(source.decode_mask), decode.noted()]
    digest = hashlib.sha256(digest_settings([*settings, rows_per_shard, ORDER_SEED]).encode())
    for batch in SourceRows.of(source.rows).batches():
        digest.update(batch.serialize())
    if source.clumps is not None:
        digest.update(source.clumps.tobytes())
    return digest.hexdigest()


def digest_labels(source: Source) -> str:
    """Hex SHA-256 of which images a source has, and with which labels, wherever the files lie."""
    digest = hashlib.sha256(json.dumps(list(source.class_names)).encode())
    for row in source.rows:
        digest.update(f"{json.dumps(row.image_id)}{row.image_labels}\n".encode())
    return digest.hexdigest()


def digest_settings(settings: Any) -> str:
    """Hex SHA-256 of settings, and of the version that writes the data set."""
    return hashlib.sha256(repr([__version__, FORMAT_VERSION, settings]).encode()).hexdigest()


def make_once(
    out: Path,
    shard_index: int,
    sources: Iterable[str],
    make: Callable[[], ShardSummary],
    made_from: str,
) -> tuple[ShardSummary, bool]:
    """Make a shard, unless an interrupted run has; the shard's summary, and whether it was there.

    A shard is made again if one of its images failed, which may have been mended since, or if one of its
    files on disk has changed. Whether a file in a store has changed is not asked.

    Args:
        sources: paths and URIs of the files that the shard is made from.
        make: writes the shard.
        made_from: as `begin_ingest` has it. Tasks of another run may outlive their driver for a while.
    """
    path = out / "unfinished" / "shards" / f"part-{shard_index:05d}.json"
    state = {"made_from": made_from, "changed_ns": _last_change(sources)}
    found = _read(path)
    if found is not None and found["state"] == state:
        summary = to_summary(found["summary"])
        if not summary.errors and part_path(out, shard_index).exists():
            return summary, True
    summary = make()
    write_json({"state": state, "summary": to_json(summary)}, path, ascii_only=True)
    return summary, False


def to_json(summary: ShardSummary) -> dict[str, Any]:
    """A summary as `to_summary` takes it."""
    return asdict(summary) | {"content_hashes": list(summary.content_hashes)}


def to_summary(content: dict[str, Any]) -> ShardSummary:
    """The summary of a shard from JSON, which made lists of its tuples, and text of a mapping's keys."""
    restored: dict[str, Any] = {
        "images_with": {int(label): count for label, count in content["images_with"].items()},
        "content_hashes": array("q", content["content_hashes"]),
    }
    restored |= {name: [tuple(found) for found in content[name]] for name in ("errors", "remarks")}
    return ShardSummary(**content | restored)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _last_change(sources: Iterable[str]) -> int:
    """Time of the last change of files on disk, or of their names, in nanoseconds since 1970."""
    latest = 0
    for path in {source for source in sources if source and "://" not in source}:
        try:
            found = Path(path).stat()
        except (OSError, ValueError):
            continue
        latest = max(latest, found.st_mtime_ns, found.st_ctime_ns)
    return latest
