"""How throughput grows with the number of nodes: the labelling engine, with a stage that sleeps."""

import io
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_wsss.data.reader import shard_paths
from ray_wsss.data.schema import IMAGE_SCHEMA, ROWS_PER_GROUP, DatasetMetadata, write_table_atomically
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.runs.read_chunks import ROWS_PER_CHUNK
from ray_wsss.runs.tally import Tally

log = logging.getLogger(__name__)

_IMAGE_PX = 16
_CHUNKS_PER_SHARD = 4
_SAMPLE_S = 0.2


class Sleeper:
    """A stage that sleeps instead of computing, so that this machine's cores don't limit the throughput."""

    rows_per_group = ROWS_PER_GROUP

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Sleep; returns for each image this process's id and the time, in seconds since 1970."""
        time.sleep(self.seconds)
        columns = {
            "image_id": [image.image_id for image in images],
            "worker": [os.getpid()] * len(images),
            "ended": [time.time()] * len(images),
        }
        return pa.table(columns), Tally(images=len(images))


@dataclass(frozen=True, kw_only=True)
class ScaleBenchmark:
    """Measures the throughput on several numbers of nodes."""

    nodes: Sequence[int]
    """Numbers of nodes. A node has a CPU per actor: half of it for the actor, half for decoding."""
    seconds: float
    """Seconds that the stage sleeps per chunk of 64 images; more than 0."""
    chunks: int
    """Chunks per actor, at least 4."""
    actors_per_node: int = 1
    """Actors per node, at least 1."""
    work: Path
    """Folder for inputs and results."""

    def run(self) -> dict[str, Any]:
        """Measure; returns figures by number of nodes, over the time in which all actors worked.

        ``efficiency`` is the throughput per node relative to the smallest number of nodes. ``of_sleep`` is
        the throughput relative to actors that do nothing but sleep. ``driver_cpu_s_per_chunk`` is the CPU
        time of this process, which plans and schedules.

        Raises:
            UserError: a setting is out of range, or there are too few chunks to measure.
        """
        from ray_wsss.cluster.small_nodes import small_nodes

        counts = sorted(set(self.nodes))
        if counts[0] < 1 or self.seconds <= 0 or self.chunks < 4 or self.actors_per_node < 1:
            raise UserError(
                f"--nodes has {counts[0]}, --seconds is {self.seconds:g}, --chunks {self.chunks} and "
                f"--actors-per-node {self.actors_per_node}; "
                "expected at least 1 node, more than 0 seconds, 4 chunks and 1 actor"
            )
        figures: dict[str, Any] = {"seconds_per_chunk": self.seconds, "images_per_chunk": ROWS_PER_CHUNK}
        rows: dict[int, dict[str, float]] = {}
        with small_nodes(cpus=self.actors_per_node) as grow_to:
            for count in counts:
                grow_to(count)
                rows[count] = self._measure(count)
                log.info("%d nodes: %.1f images/s", count, rows[count]["images_per_s"])
        for name in rows[counts[0]]:
            figures[name] = {str(count): row[name] for count, row in rows.items()}
        speeds = {count: row["images_per_s"] for count, row in rows.items()}
        one = speeds[counts[0]] / counts[0]
        figures["efficiency"] = {str(count): speed / (one * count) for count, speed in speeds.items()}
        alone = self.actors_per_node * ROWS_PER_CHUNK / self.seconds
        figures["of_sleep"] = {str(count): speed / (alone * count) for count, speed in speeds.items()}
        return figures

    def _measure(self, count: int) -> dict[str, float]:
        from ray_wsss.cluster.run_chunks import Stage, run_chunks
        from ray_wsss.config.resources import Cluster, Resources

        actors = count * self.actors_per_node
        out = self.work / f"slept_{actors}"
        stage = Stage(
            stage_class=Sleeper,
            arguments={"seconds": self.seconds},
            prepare=PrepareImages(frame=InputFrame(_IMAGE_PX)),
        )
        with _cpu_of_this_process() as cpu:
            report = run_chunks(
                Output(out, "sleep", {"seconds": self.seconds}),
                stage,
                dataset=write_dots(self.work / f"dots_{actors * self.chunks}", actors * self.chunks),
                resources=Resources(actors=actors, cpus_per_actor=0.5),
                cluster=Cluster(),
                overwrite=True,
            )
        ended = read_times(out)
        if len(ended) != actors:
            raise UserError(f"{len(ended)} of {actors} actors had work; expected all of them: raise --chunks")
        start, end = common_time(ended)
        done = sum(start < moment <= end for moments in ended.values() for moment in moments)
        return {
            "images_per_s": ROWS_PER_CHUNK * steady_rate(ended),
            "startup_s": report.startup_s,
            "driver_cpu_s_per_chunk": float(np.diff(np.interp([start, end], *cpu))[0]) / max(done, 1),
        }


def read_times(out: Path) -> dict[int, list[float]]:
    """Times at which each process ended its chunks, by process id, ascending, in seconds since 1970."""
    ended: dict[int, list[float]] = defaultdict(list)
    for path in shard_paths(out):
        row = pq.read_table(path, columns=["worker", "ended"]).slice(0, 1).to_pylist()[0]
        ended[row["worker"]].append(row["ended"])
    return {worker: sorted(moments) for worker, moments in ended.items()}


def common_time(ended: Mapping[int, Sequence[float]]) -> tuple[float, float]:
    """The start and end of the time in which all processes worked.

    It starts when every process has ended its first chunk, and ends when any process has ended its last one.
    """
    return max(moments[0] for moments in ended.values()), min(moments[-1] for moments in ended.values())


def steady_rate(ended: Mapping[int, Sequence[float]]) -> float:
    """Chunks per second while all processes worked: the sum of their rates.

    The rate of a process is measured from the end of a chunk to the end of another one.

    Raises:
        UserError: there was no such time, or a process ended fewer than three chunks in it.
    """
    start, end = common_time(ended)
    within = [[m for m in moments if start <= m <= end] for moments in ended.values()]
    fewest = min(len(moments) for moments in within)
    if fewest < 3:
        raise UserError(
            f"an actor was done with {fewest} chunks while all actors worked; "
            "expected at least 3: raise --chunks"
        )
    return sum((len(moments) - 1) / (moments[-1] - moments[0]) for moments in within)


def write_dots(out: Path, chunks: int) -> Path:
    """A data set of ``chunks`` times 64 tiny images; one that ``out`` holds already stays as it is."""
    if (out / "metadata.json").exists():
        return out
    encoded = io.BytesIO()
    Image.new("RGB", (_IMAGE_PX, _IMAGE_PX)).save(encoded, "PNG")
    fixed = {"image": encoded.getvalue(), "orientation": 1, "height": _IMAGE_PX, "width": _IMAGE_PX}
    images = chunks * ROWS_PER_CHUNK
    rows_per_shard = _CHUNKS_PER_SHARD * ROWS_PER_CHUNK
    for first in range(0, images, rows_per_shard):
        names = range(first, min(first + rows_per_shard, images))
        rows = [{"image_id": f"{name:08d}", "image_labels": [0], "mask": None, **fixed} for name in names]
        path = out / "shards" / f"part-{first // rows_per_shard:05d}.parquet"
        write_table_atomically(pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA), path)
    DatasetMetadata(
        class_names=("dot",), source="folder", images=images, unlabelled=0, errors=0, has_masks=False
    ).save(out)
    return out


@contextmanager
def _cpu_of_this_process() -> Iterator[tuple[list[float], list[float]]]:
    """Yield sampled times, and this process's CPU seconds by then; both lists grow meanwhile."""
    moments, seconds = [time.time()], [time.process_time()]
    over = Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_S):
            moments.append(time.time())
            seconds.append(time.process_time())

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield moments, seconds
    finally:
        over.set()
        thread.join()
