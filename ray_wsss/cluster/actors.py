"""Actor pools of stage classes: the one place where rows flow through Ray Data."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from ray_wsss.cluster.capacity import check_resources, room_for_processes
from ray_wsss.cluster.connect import own_errors
from ray_wsss.cluster.growing import can_grow
from ray_wsss.cluster.names import title_of
from ray_wsss.config.resources import Resources
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.memory import keep_freed_memory, take_share_of_gpu
from ray_wsss.runs.read_chunks import Chunk, plan_chunks, read_chunk


class StageActor:
    """One process of a stage's actor pool; a subclass defines how the stage is called.

    Args:
        arguments: keyword arguments of the stage class.
        threads: number of torch threads; None: this process is no actor, and has what it has.
    """

    stage_class: ClassVar[type]

    def __init__(self, arguments: dict[str, Any], threads: int | None) -> None:
        keep_freed_memory()
        self.failure: Exception | None = None
        try:
            if threads is not None:
                _take_share(threads)
            self.stage = self.stage_class(**arguments)
        except Exception as error:
            # Raised with the first chunk: in Ray 2.60 an exception in an actor's constructor reaches the
            # driver only as the text of an ActorDiedError, and Ray Data may start the actor again
            # (ray-project/ray#59105).
            self.failure = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self.failure is not None:
            raise self.failure
        return self.run(rows)

    def run(self, rows: pa.Table) -> pa.Table:
        """Run the stage on one chunk."""
        raise NotImplementedError


def _take_share(threads: int) -> None:
    import torch  # which the driver does without

    torch.set_num_threads(threads)
    take_share_of_gpu(ray.get_runtime_context().get_assigned_resources().get("GPU", 0))


class _TableActor(StageActor):
    """Reads the rows of a chunk and calls the stage with them."""

    def __init__(self, arguments: dict[str, Any], threads: int | None, columns: list[str]) -> None:
        super().__init__(arguments, threads)
        self.columns = columns

    def run(self, rows: pa.Table) -> pa.Table:
        return self.stage(read_chunk(chunk_of(rows), self.columns))


def map_stage(
    dataset: Path, columns: list[str], stage: type, *, arguments: dict[str, Any], resources: Resources
) -> Generator[dict[str, Any]]:
    """Run a stage class (table in, table out) over a data set, chunk by chunk, on a fixed pool of actors.

    Without actors, the stage runs in this process.

    Args:
        columns: columns of the data set that the stage reads.
        arguments: keyword arguments of the stage class.

    Yields:
        The rows that the stage returns.

    Raises:
        UserError: the cluster is too small for the pool, or the data set is damaged.
    """
    DatasetMetadata.load(dataset)
    chunks = plan_chunks(dataset)
    extra = {"columns": columns}
    if resources.actors == 0:
        return iterate_here(map(row_of, chunks), _TableActor, stage, arguments, extra)
    rows = map_actors(plan_rows(chunks), _TableActor, stage, arguments, resources, len(chunks), extra)
    return iterate(rows, f"{title_of(dataset)}-{stage.__name__}")


def plan_rows(chunks: Sequence[Chunk]) -> Dataset:
    """The chunks as a Ray data set: one row for each chunk, each row a block of its own."""
    return ray.data.from_items([asdict(chunk) for chunk in chunks], override_num_blocks=len(chunks))


def row_of(chunk: Chunk) -> pa.Table:
    """The block of `plan_rows` that describes a chunk."""
    return pa.Table.from_pylist([asdict(chunk)])


def chunk_of(rows: pa.Table) -> Chunk:
    """The chunk that a block of `plan_rows` describes."""
    names = [f.name for f in fields(Chunk)]
    return Chunk(**{name: rows[name][0].as_py() for name in names})


def map_actors(
    blocks: Dataset,
    actor: type[StageActor],
    stage: type,
    arguments: dict[str, Any],
    resources: Resources,
    count: int,
    extra: Mapping[str, Any],
) -> Dataset:
    """Run blocks of one row through a pool of actors.

    The pool is fixed. On a cluster that grows it begins with the actors that there is room for, at least one,
    and takes in the others when their nodes are up.

    Args:
        actor: class that hands a block to the stage.
        stage: class of the stage.
        arguments: keyword arguments of ``stage``.
        count: number of blocks; the pool has at most this many actors.
        extra: further arguments of ``actor``.

    Raises:
        UserError: the cluster is too small for the pool.
    """
    pool = _pool_of(
        min(resources.actors, count), resources, f"{stage.__name__} with {resources.actors} actors"
    )
    threads = max(1, int(resources.cpus_per_actor))
    return blocks.map_batches(
        _actor_of(stage, actor),
        # One row is one block. Ray 2.60 refuses batch_size=None with GPUs (ray-project/ray#53810).
        batch_size=1,
        batch_format="pyarrow",
        # Ray's max_errored_blocks stays 0, since with -1 a fixed pool hangs when an actor dies
        # (ray-project/ray#62746).
        compute=pool,
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        memory=resources.share.by_name.get("memory"),
        label_selector=dict(resources.share.labels) or None,
        fn_constructor_kwargs={"arguments": arguments, "threads": threads, **extra},
    )


def _pool_of(count: int, resources: Resources, what: str) -> ActorPoolStrategy:
    """A pool of ``count`` actors, or of as many as there is room for until a cluster has grown."""
    spare = resources.decode_share
    room = room_for_processes(resources.actors, resources.share, spare)
    if 0 < room < count and can_grow():
        # A pool between two sizes only here: its size swings up and down on a cluster that scales
        # (ray-project/ray#59144, ray-project/ray#41956), and each actor loads its networks anew.
        return ActorPoolStrategy(min_size=room, max_size=count)
    check_resources(count=resources.actors, share=resources.share, what=what, spare=spare)
    return ActorPoolStrategy(size=count)


def _actor_of(stage: type, actor: type[StageActor]) -> type[StageActor]:
    """The actor's class for one stage, with the stage's name, which Ray's dashboard shows."""
    return type(stage.__name__, (actor,), {"stage_class": stage})


def iterate_here(
    blocks: Iterable[pa.Table],
    actor: type[StageActor],
    stage: type,
    arguments: dict[str, Any],
    extra: Mapping[str, Any],
) -> Generator[dict[str, Any]]:
    """Run blocks of one row through a single "actor" in this process, without Ray, and yield its rows.

    The arguments are those of `map_actors`.
    """
    only = _actor_of(stage, actor)(arguments=arguments, threads=None, **extra)
    for block in blocks:
        yield from only(block).to_pylist()


def iterate(rows: Dataset, name: str) -> Generator[dict[str, Any]]:
    """Yield rows as they arrive at the driver. An exception of a stage is raised without Ray's wrapper.

    Args:
        name: name of the work in Ray's dashboard.
    """
    rows.set_name(name)
    with own_errors():
        yield from rows.iter_rows()
