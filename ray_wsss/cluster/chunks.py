"""Long runs over many images: CPU workers decode chunks ahead, actors work them off, each writes its part.

A killed driver, actor or node costs the chunks that were in work: the next run of the same command, or
Ray's retry, does them again and finds the others done.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pyarrow as pa
from ray.data import DataContext, Dataset

from ray_wsss.cluster.map import Resources, StageActor, chunk_of, iterate, map_actors, plan_rows
from ray_wsss.cluster.metrics import StageMetrics
from ray_wsss.cluster.progress import ImageProgress
from ray_wsss.cluster.session import Cluster, describe_cluster, ray_session
from ray_wsss.data.reader import open_shard
from ray_wsss.data.schema import write_errors
from ray_wsss.errors import UserError
from ray_wsss.stages.chunks import (
    Chunk,
    PreparedImage,
    PrepareImages,
    pack_images,
    plan_chunks,
    unpack_images,
)
from ray_wsss.stages.manifest import Output
from ray_wsss.stages.parts import Parts
from ray_wsss.stages.run_record import recorded_run
from ray_wsss.stages.tally import Tally

_DECODE_MEMORY = 1000 * 2**20
"""Bytes that a process which decodes chunks is planned to take; half of it is what it imports.

Not what anybody asks for an actor: Ray Data puts operators that ask for the same resources into one process,
and it would decode inside the actors, while their GPU waits.
"""
Failures = list[tuple[str, str]]
"""Images that failed, and why."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage that takes prepared images and gives a table and a tally, and what it needs."""

    stage_class: type
    arguments: dict[str, Any]
    prepare: PrepareImages


class RunOptions(TypedDict):
    """Where and how `run_chunks` runs, as every stage passes it on."""

    resources: Resources
    cluster: Cluster
    overwrite: NotRequired[bool]
    """Replace what the output folder holds."""


@dataclass(kw_only=True)
class RunReport:
    """What a run over many images did."""

    total: Tally = field(default_factory=Tally)
    """Counts of the whole output; seconds of this run, summed over the actors."""
    done_before: int = 0
    """Images that an earlier run had finished."""
    startup_s: float = 0.0
    """Until the first actor began to work."""
    work_s: float = 0.0
    """From then until the last chunk was written."""

    @property
    def images_per_s(self) -> float:
        """Of this run, its start taken off."""
        return (self.total.images + self.total.errors - self.done_before) / max(self.work_s, 1e-9)

    def figures(self) -> dict[str, Any]:
        """As plain data, for `stages.run_record`."""
        times = {"startup_s": round(self.startup_s, 2), "work_s": round(self.work_s, 2)}
        speed = {"images_per_s": round(self.images_per_s, 2)} if self.work_s else {}
        return asdict(self.total) | {"done_before": self.done_before} | times | speed


class ImagesActor(StageActor):
    """Hands prepared images to the stage; subclasses say how, and keep what comes back.

    Args:
        name: of the stage, for Ray's metrics.
    """

    def __init__(self, arguments: dict[str, Any], threads: int, name: str) -> None:
        super().__init__(arguments, threads)
        self.metrics = StageMetrics(name)
        self.idle_since: float | None = None

    def run(self, rows: pa.Table) -> pa.Table:
        began = time.time()
        tally, failed = self.work(rows, unpack_images(rows["images"].combine_chunks()))
        tally.seconds["decode"] = rows["decode_seconds"][0].as_py()
        tally.seconds["wait"] = began - self.idle_since if self.idle_since is not None else 0.0
        self.metrics.add(tally)
        self.idle_since = time.time()
        return pa.table(
            {
                "tally": [json.dumps(asdict(tally))],
                "failed": [json.dumps(failed)],
                "began": [began],
                "ended": [self.idle_since],
            }
        )

    def work(self, rows: pa.Table, images: list[PreparedImage]) -> tuple[Tally, Failures]:
        """One block: what it took, and the images that failed unless they are on disk already."""
        raise NotImplementedError


class _ChunkActor(ImagesActor):
    """Writes the part of a chunk."""

    def __init__(self, arguments: dict[str, Any], threads: int, name: str, parts: Parts) -> None:
        super().__init__(arguments, threads, name)
        self.parts = parts

    def work(self, rows: pa.Table, images: list[PreparedImage]) -> tuple[Tally, Failures]:
        table, tally = self.stage(images)
        with tally.phase("write"):
            self.parts.write(chunk_of(rows), table, tally, self.stage.rows_per_group)
        return tally, []


def decode_ahead(
    blocks: Dataset, prepare: Callable[[pa.Table], list[PreparedImage]], resources: Resources
) -> Dataset:
    """Blocks of one row with their images, decoded by tasks beside the actors."""
    return blocks.map_batches(
        partial(decode_images, prepare=prepare),  # the dashboard shows the function's name
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.cpus_to_decode,
        memory=_DECODE_MEMORY,
    )


def decode_images(rows: pa.Table, prepare: Callable[[pa.Table], list[PreparedImage]]) -> pa.Table:
    began = time.perf_counter()
    rows = rows.append_column("images", pack_images(prepare(rows)))
    return rows.append_column("decode_seconds", pa.array([time.perf_counter() - began]))


def run_chunks(
    output: Output,
    stage: Stage,
    *,
    dataset: Path,
    resources: Resources,
    cluster: Cluster,
    overwrite: bool = False,
) -> RunReport:
    """Bring ``output`` to its end: every image of ``dataset`` in it once.

    Raises:
        UserError: another run's output, a damaged data set, too small a cluster, or every image failed.
    """
    state = output.begin(overwrite=overwrite)
    chunks = plan_chunks(dataset)
    parts = Parts(output.out.absolute(), output.fingerprint)
    before = parts.finished(chunks)
    report = RunReport()
    for tally in before.values():
        report.total.add(tally)
    report.done_before = report.total.images + report.total.errors
    if state == "finished" and len(before) == len(chunks):
        print(f"{output.out} is already finished; --overwrite makes it again")
        return report
    output.reopen()  # finished or not, from here on it is incomplete
    for stray in parts.strays(chunks):
        stray.unlink()
    missing = [chunk for chunk in chunks if chunk.index not in before]
    if missing:
        if before:
            print(f"{report.done_before:,} images are done already", flush=True)
        images = sum(chunk.rows for chunk in chunks)
        with (
            ray_session(cluster.address, verbose=cluster.verbose),
            ImageProgress(output.stage, images, report.done_before) as progress,
            recorded_run(output.out, resources=asdict(resources), cluster=describe_cluster()) as figures,
        ):
            DataContext.get_current().enable_progress_bars = cluster.verbose
            count_done(_pipeline(missing, parts, stage, output.stage, resources), report, progress)
            figures |= report.figures()
    if not report.total.images:
        raise UserError(
            f"all {report.total.errors} images failed; the column 'error' of {output.out / 'shards'} says why"
        )
    _list_errors(parts, chunks)
    output.finish()
    return report


def _pipeline(
    chunks: Sequence[Chunk], parts: Parts, stage: Stage, name: str, resources: Resources
) -> Dataset:
    prepare = stage.prepare
    prepared = decode_ahead(plan_rows(chunks), lambda rows: prepare(chunk_of(rows)), resources)
    extra = {"parts": parts, "name": name}
    return map_actors(
        prepared, _ChunkActor, stage.stage_class, stage.arguments, resources, len(chunks), extra
    )


def count_done(done: Dataset, report: RunReport, progress: ImageProgress) -> Failures:
    """Run a pipeline that ends in an `ImagesActor`; returns the images that failed, as the actors say."""
    started, began, ended = time.time(), float("inf"), 0.0
    failed: Failures = []
    # Nothing but counts comes back: what the actors made is on disk.
    for row in iterate(done):
        failed += [(name, reason) for name, reason in json.loads(row["failed"])]
        tally = Tally(**json.loads(row["tally"]))
        report.total.add(tally)
        progress.advance(tally.images + tally.errors, tally.errors)
        began, ended = min(began, row["began"]), max(ended, row["ended"])
    report.startup_s, report.work_s = began - started, ended - began
    return failed


def _list_errors(parts: Parts, chunks: Sequence[Chunk]) -> None:
    """Write OUT/errors.parquet; none where no image failed."""
    failed: Failures = []
    tallies = parts.finished(chunks)
    for chunk in chunks:
        tally = tallies.get(chunk.index)
        if tally is None:
            raise UserError(f"{parts.path(chunk.index)} went missing while the run was on; run it again")
        if tally.errors:
            with open_shard(parts.path(chunk.index)) as file:
                rows = file.read(columns=["image_id", "error"]).to_pylist()
            failed += [(row["image_id"], row["error"]) for row in rows if row["error"]]
    write_errors(failed, parts.out)


def describe_run(report: RunReport, what: str) -> str:
    """The summary at the end of a run: counts, speed, and what took longest."""
    total = report.total
    lines = [f"{total.images:,} images {what}, {total.errors:,} errors"]
    if report.work_s:
        speed = f"{report.images_per_s:.1f} images/s in {report.work_s:.0f} s"
        lines.append(f"{speed}, after {report.startup_s:.0f} s of starting")
        lines.append(_phases(total.seconds))
    return "\n".join(lines)


def _phases(seconds: dict[str, float]) -> str:
    """Shares of the actors' time, largest first; decoding is done beside them."""
    of_actors = {phase: s for phase, s in seconds.items() if phase != "decode"}
    whole = max(sum(of_actors.values()), 1e-9)
    ranked = sorted(of_actors, key=lambda phase: -of_actors[phase])
    shares = ", ".join(f"{phase} {of_actors[phase] / whole:.0%}" for phase in ranked)
    slowest = ranked[0] if ranked[0] != "wait" else "decode (the actors waited for decoded images)"
    decode = f"decoding beside them took {seconds['decode']:.1f} s"
    return f"slowest part: {slowest}; of the actors' time: {shares}; {decode}"
