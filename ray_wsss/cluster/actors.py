"""A stage class as an actor pool: the one place where rows flow through Ray Data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from ray_wsss.cluster.capacity import check_resources
from ray_wsss.config.resources import Resources
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.runs.chunks import Chunk, plan_chunks, read_chunk


class StageActor:
    """A stage in a process of its own; subclasses say how it is called.

    Args:
        arguments: of the stage class.
        threads: of torch.
    """

    stage_class: ClassVar[type]

    def __init__(self, arguments: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.failure: Exception | None = None
        try:
            self.stage = self.stage_class(**arguments)
        except Exception as error:
            # Raised with the first chunk: an actor that fails to start is started again and again, and what
            # it raised reaches the driver only as text.
            self.failure = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self.failure is not None:
            raise self.failure
        return self.run(rows)

    def run(self, rows: pa.Table) -> pa.Table:
        """One chunk."""
        raise NotImplementedError


class _TableActor(StageActor):
    """Calls the stage with the rows of a chunk."""

    def __init__(self, arguments: dict[str, Any], threads: int, columns: list[str]) -> None:
        super().__init__(arguments, threads)
        self.columns = columns

    def run(self, rows: pa.Table) -> pa.Table:
        return self.stage(read_chunk(chunk_of(rows), self.columns))


def map_stage(
    dataset: Path, columns: list[str], stage: type, *, arguments: dict[str, Any], resources: Resources
) -> Dataset:
    """Run a stage class (table in, table out) over a data set, chunk by chunk, on a fixed pool of actors.

    Raises:
        UserError: the cluster is too small for the pool, or a damaged data set.
    """
    DatasetMetadata.load(dataset)
    chunks = plan_chunks(dataset)
    extra = {"columns": columns}
    return map_actors(plan_rows(chunks), _TableActor, stage, arguments, resources, len(chunks), extra)


def plan_rows(chunks: Sequence[Chunk]) -> Dataset:
    """A plan as a Ray data set, every chunk a block of its own."""
    return ray.data.from_items([asdict(chunk) for chunk in chunks], override_num_blocks=len(chunks))


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
    """Run blocks of one row through a fixed pool of actors.

    Args:
        actor: how a block is handed to the stage.
        stage: class of the stage, ``arguments`` its own.
        count: of the blocks; there are no more actors than that.
        extra: further arguments of ``actor``.

    Raises:
        UserError: the cluster is too small for the pool.
    """
    check_resources(
        count=resources.actors,
        share=resources.share,
        what=f"{stage.__name__} with {resources.actors} actors",
        spare_cpus=resources.cpus_to_decode,
    )
    threads = max(1, int(resources.cpus_per_actor))
    return blocks.map_batches(
        type(stage.__name__, (actor,), {"stage_class": stage}),  # the dashboard shows the stage's name
        batch_size=1,  # a block; with GPUs Ray takes no None for it
        batch_format="pyarrow",
        # A fixed pool: autoscaling pools flap on autoscaling clusters.
        compute=ActorPoolStrategy(size=min(resources.actors, count)),
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        memory=resources.share.by_name.get("memory"),
        fn_constructor_kwargs={"arguments": arguments, "threads": threads, **extra},
    )


def iterate(rows: Dataset) -> Iterator[dict[str, Any]]:
    """Rows as they arrive at the driver. Raises what a stage raised, as itself."""
    with own_errors():
        yield from rows.iter_rows()


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise what was raised inside a task, instead of Ray's wrapping of it."""
    try:
        yield
    except Exception as error:
        cause = unwrap(error)
        if cause is error:
            raise
        raise cause from error


def unwrap(error: BaseException) -> BaseException:
    """What was raised inside a Ray task, else the error itself."""
    seen, link = error, error
    for _ in range(20):
        cause = getattr(link, "cause", None)
        link = cause if isinstance(cause, BaseException) else link.__cause__
        if link is None:
            return seen
        if isinstance(seen, RayError) or isinstance(link, UserError | FloatingPointError):
            seen = link
    return seen
