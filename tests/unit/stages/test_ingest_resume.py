"""Which shards of an interrupted ingest are kept."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.schema import SourceRow
from ray_wsss.data.source import Source
from ray_wsss.stages.ingest import (
    IngestShard,
    ShardSummary,
    begin_ingest,
    digest_source,
    make_once,
    part_path,
)


@pytest.fixture
def rows(tmp_path: Path) -> list[SourceRow]:
    made = []
    for k in range(3):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(k).integers(0, 256, (8, 9, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        (tmp_path / f"{k}.png").write_bytes(buffer.getvalue())
        made.append(SourceRow(image_id=f"{k}", path=str(tmp_path / f"{k}.png"), image_labels=(k,)))
    return made


def make(out: Path, rows: list[SourceRow], made_from: str = "this") -> tuple[ShardSummary, bool]:
    return make_once(out, 4, [row.path for row in rows], lambda: IngestShard(out)(rows, 4), made_from)


def test_a_shard_is_made_once(rows: list[SourceRow], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, kept = make(out, rows)
    assert (first.images, kept) == (3, False)
    assert make(out, rows) == (first, True)
    assert make(out, rows, "another run") == (first, False)
    assert make(out, rows) == (first, False)
    part_path(out, 4).unlink()
    assert make(out, rows) == (first, False)
    assert part_path(out, 4).exists()
    (out / "unfinished" / "shards" / "part-00004.json").write_text("{")
    assert make(out, rows) == (first, False)
    assert make(out, rows) == (first, True)


def test_a_shard_whose_images_changed_is_made_again(rows: list[SourceRow], tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = make(out, rows)[0]
    # An older file put in place by its name has an older time of change, as 'cp --preserve' makes it.
    Path(rows[1].path).rename(tmp_path / "other.png")
    Path(rows[0].path).rename(rows[1].path)
    (tmp_path / "other.png").rename(rows[0].path)
    after, kept = make(out, rows)
    assert not kept
    assert after.content_hashes != before.content_hashes
    os.utime(rows[2].path)
    assert not make(out, rows)[1]
    assert make(out, rows)[1]


def test_a_shard_with_errors_is_made_again(rows: list[SourceRow], tmp_path: Path) -> None:
    out, good = tmp_path / "out", Path(rows[0].path).read_bytes()
    Path(rows[0].path).write_bytes(good[:40])
    assert [len(make(out, rows)[0].errors) for _ in range(2)] == [1, 1]
    Path(rows[0].path).write_bytes(good)
    assert make(out, rows)[0].images == 3


def test_only_a_run_with_the_same_settings_goes_on(rows: list[SourceRow], tmp_path: Path) -> None:
    source, decode = Source(kind="csv", class_names=["a", "b", "c"], rows=rows), DecodeConfig()
    digest = digest_source(source, decode, 256)
    assert digest == digest_source(replace(source, rows=list(rows)), DecodeConfig(), 256)
    others = [
        digest_source(replace(source, rows=rows[::-1]), decode, 256),
        digest_source(replace(source, rows=[*rows[:2], replace(rows[2], image_labels=())]), decode, 256),
        digest_source(replace(source, class_names=["a", "c", "b"]), decode, 256),
        digest_source(replace(source, mask_values={0: 0}), decode, 256),
        digest_source(replace(source, clumps=np.zeros(3, np.int64)), decode, 256),
        digest_source(source, replace(decode, intensity="full"), 256),
        digest_source(source, decode, 128),
    ]
    assert len({digest, *others}) == 8
    out = tmp_path / "out"
    assert not begin_ingest(out, digest)
    make(out, rows)
    assert begin_ingest(out, digest)
    assert make(out, rows)[1]
    assert not begin_ingest(out, others[0])
    assert not part_path(out, 4).exists()
    assert not make(out, rows)[1]
    assert not begin_ingest(out)
    assert not (out / "unfinished").exists()
