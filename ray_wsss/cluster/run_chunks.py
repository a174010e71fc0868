"""Long runs over many images: tasks on CPUs decode chunks ahead, actors process them and write one part each.

A killed driver, actor or node costs only the chunks in progress. Ray's retry, or the next run of the same
command, does them again and skips the finished ones.
"""

import json
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pyarrow as pa
import ray
from ray.data import DataContext

from ray_wsss.cluster.actors import (
    StageActor,
    chunk_of,
    iterate,
    iterate_here,
    map_actors,
    plan_rows,
    row_of,
)
from ray_wsss.cluster.capacity import describe_cluster
from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.decode import decode_ahead, decode_images
from ray_wsss.cluster.growing import room_for
from ray_wsss.cluster.metrics import StageMetrics
from ray_wsss.cluster.names import title_of
from ray_wsss.cluster.progress import ImageProgress
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.errors import TooManyFailedError
from ray_wsss.runs.chunk_run import ChunkRun
from ray_wsss.runs.history import RunSetup, recorded_run
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.parts import Parts
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages, unpack_images
from ray_wsss.runs.read_chunks import Slice, chunks_per_plan
from ray_wsss.runs.resilient import run_stage
from ray_wsss.runs.run_report import Failures, RunReport
from ray_wsss.runs.tally import Tally

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage that turns prepared images into a table and a tally, with its arguments."""

    stage_class: type
    arguments: dict[str, Any]
    """Keyword arguments of ``stage_class``."""
    prepare: PrepareImages
    """Reads and decodes the images of a chunk for the stage."""


class RunOptions(TypedDict):
    """Options of `run_chunks` that every stage passes on."""

    resources: Resources
    cluster: Cluster
    overwrite: NotRequired[bool | None]
    """Make the output again; see `runs.manifest.Output.begin`."""
    part: NotRequired[Slice | None]
    """Slice of the data set to work on; all of it without one. The manifest has to note it."""
    limit: NotRequired[ErrorLimit]
    """How many images may fail; the default `ErrorLimit` without it."""


@dataclass(frozen=True, kw_only=True)
class DoneBlock:
    """Counts and failures of a block, for the driver; an actor has written the results."""

    tally: Tally
    failed: Failures = field(default_factory=Failures)
    """Those failed images that the results don't list."""
    first_reason: str = ""
    """Reason why the first image failed; empty if none did."""


class ImagesActor(StageActor):
    """Hands prepared images to the stage; a subclass defines how, and where the results are written.

    Args:
        name: name of the stage, for Ray's metrics.
    """

    def __init__(self, arguments: dict[str, Any], threads: int | None, name: str) -> None:
        super().__init__(arguments, threads)
        self.metrics = StageMetrics(name) if ray.is_initialized() else None
        self.idle_since: float | None = None

    def run(self, rows: pa.Table) -> pa.Table:
        began = time.time()
        done = self.work(rows, unpack_images(rows["images"].combine_chunks()))
        tally = done.tally
        tally.seconds["decode"] = rows["decode_seconds"][0].as_py()
        tally.seconds["wait"] = began - self.idle_since if self.idle_since is not None else 0.0
        if self.metrics is not None:
            self.metrics.add(tally)
        self.idle_since = time.time()
        return pa.table(
            {
                "tally": [json.dumps(asdict(tally))],
                "failed": [json.dumps(done.failed)],
                "first_reason": [done.first_reason],
                "began": [began],
                "ended": [self.idle_since],
            }
        )

    def work(self, rows: pa.Table, images: list[PreparedImage]) -> "DoneBlock":
        """Process a block."""
        raise NotImplementedError


class _ChunkActor(ImagesActor):
    """Writes the results of each chunk as one part."""

    def __init__(self, arguments: dict[str, Any], threads: int | None, name: str, parts: Parts) -> None:
        super().__init__(arguments, threads, name)
        self.parts = parts

    def work(self, rows: pa.Table, images: list[PreparedImage]) -> DoneBlock:
        table, tally = run_stage(self.stage, images)
        with tally.phase("write"):
            self.parts.write(chunk_of(rows), table, tally, self.stage.rows_per_group)
        reasons = table["error"].drop_null() if tally.errors else []
        return DoneBlock(tally=tally, first_reason=str(reasons[0]) if len(reasons) else "")


def run_chunks(
    output: Output,
    stage: Stage,
    *,
    dataset: Path,
    resources: Resources,
    cluster: Cluster,
    overwrite: bool | None = None,
    part: Slice | None = None,
    limit: ErrorLimit | None = None,
) -> RunReport:
    """Run a stage until ``output`` has every image of ``dataset`` once; resumes an interrupted run.

    Args:
        part: slice of ``dataset`` to work on, which ``output.depends_on`` notes; None: all of it.
        overwrite: as for `Output.begin`.
        limit: how many images may fail; None: the default.

    Raises:
        UserError: ``output`` belongs to another run, the data set is damaged, or the cluster is too small.
        TooManyFailedError: too many images failed. Their chunks are forgotten: the next run does them again.
    """
    limit = limit or ErrorLimit()
    run = ChunkRun.start(output, dataset, overwrite=overwrite, part=part)
    report = RunReport(total=run.done, done_before=run.done.images + run.done.errors)
    if run.is_finished:
        output.log_finished(overwrite)
        return report
    if run.missing:
        if report.done_before:
            log.info("%s images are done already", f"{report.done_before:,}")
        try:
            _work_off(run, stage, report, resources, cluster, limit)
        except TooManyFailedError:
            run.forget_failed()
            raise
    run.finish(limit)
    return report


def _work_off(
    run: ChunkRun, stage: Stage, report: RunReport, resources: Resources, cluster: Cluster, limit: ErrorLimit
) -> None:
    output = run.output
    with (
        session_of(resources, cluster, output.stage),
        ImageProgress(output.stage, run.images, report.done_before) as progress,
        recorded_run(output.out, **where(resources)) as figures,
    ):
        count_done(_pipeline(run, stage, resources), report, progress, limit)
        figures |= report.figures()


@contextmanager
def session_of(resources: Resources, cluster: Cluster, what: str) -> Iterator[None]:
    """Connect to Ray, whose own progress bars stay hidden; without actors there is nothing to connect.

    Args:
        what: the command, which a cluster that grows gets nodes for.
    """
    if resources.actors == 0:
        yield
        return
    with (
        ray_session(cluster.address, verbose=cluster.verbose),
        room_for(
            count=resources.actors,
            share=resources.share,
            spare=resources.decode_share,
            least=1,
            what=what,
            cluster=cluster,
        ),
    ):
        DataContext.get_current().enable_progress_bars = cluster.verbose
        yield


def where(resources: Resources) -> RunSetup:
    """Resources and cluster of a run, for its record."""
    found: RunSetup = {"resources": asdict(resources)}
    return found | {"cluster": describe_cluster()} if resources.actors else found


def _pipeline(run: ChunkRun, stage: Stage, resources: Resources) -> Generator[dict[str, Any]]:
    chunks, prepare = run.missing, stage.prepare
    extra = {"parts": run.parts, "name": run.output.stage}
    if resources.actors == 0:
        blocks = (decode_images(row_of(chunk), lambda rows: prepare(chunk_of(rows))) for chunk in chunks)
        return iterate_here(blocks, _ChunkActor, stage.stage_class, stage.arguments, extra)
    return _in_rounds(run, stage, resources, extra)


def _in_rounds(
    run: ChunkRun, stage: Stage, resources: Resources, extra: dict[str, Any]
) -> Generator[dict[str, Any]]:
    """Run one plan of Ray Data after the other, so that those of a large data set fit the head."""
    prepare, chunks = stage.prepare, run.missing
    size = chunks_per_plan(resources.actors)
    for first in range(0, len(chunks), size):
        of_round = chunks[first : first + size]
        prepared = decode_ahead(plan_rows(of_round), lambda rows: prepare(chunk_of(rows)), resources)
        done = map_actors(
            prepared, _ChunkActor, stage.stage_class, stage.arguments, resources, len(of_round), extra
        )
        yield from iterate(done, title_of(run.output.out))


def count_done(
    done: Generator[dict[str, Any]], report: RunReport, progress: ImageProgress, limit: ErrorLimit
) -> Failures:
    """Exhaust the rows of an `ImagesActor`, and add their counts to ``report`` and ``progress``.

    Returns:
        The failed images that the actors report.

    Raises:
        TooManyFailedError: of the images that arrived so far, more failed than ``limit`` allows.
    """
    started, began, ended = time.time(), float("inf"), 0.0
    failed: Failures = []
    first_reason, of_run = "", Tally()
    # Only counts come back to the driver: the actors have written the results to disk.
    with closing(done) as rows:
        for row in rows:
            failed += [(name, reason) for name, reason in json.loads(row["failed"])]
            tally = Tally(**json.loads(row["tally"]))
            report.total.add(tally)
            progress.advance(tally.images + tally.errors, tally.errors)
            began, ended = min(began, row["began"]), max(ended, row["ended"])
            of_run.add(tally)
            first_reason = first_reason or row["first_reason"]
            limit.check(of_run.images, of_run.errors, first_reason)
    report.startup_s, report.work_s = began - started, ended - began
    return failed
