"""A stage class as an actor pool: the one place where rows flow through Ray Data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from ray_wsss.cluster.session import check_resources
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError

BATCHES_PER_BLOCK = 4
"""At most: larger blocks cost fewer tasks, smaller ones spread better."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage's actor pool is given. Declared here, never probed: the driver may have no GPU."""

    actors: int = 1
    """Processes, each with the networks it needs."""
    cpus_per_actor: float = 1
    """CPUs, and so torch threads, of an actor."""
    gpus_per_actor: float = 0
    """GPUs of an actor; fractions share one."""

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise UserError(f"the number of actors is {self.actors}; expected at least 1")
        if self.cpus_per_actor <= 0 or self.gpus_per_actor < 0:
            raise UserError(
                f"an actor gets {self.cpus_per_actor:g} CPUs and {self.gpus_per_actor:g} GPUs; "
                "expected more than 0 CPUs and 0 or more GPUs"
            )

    @property
    def device(self) -> str:
        """Torch device of an actor."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


class _Actor:
    """A stage in its own process."""

    stage_class: ClassVar[type]

    def __init__(self, arguments: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.failure: Exception | None = None
        try:
            self.stage = self.stage_class(**arguments)
        except Exception as error:
            # Raised with the first batch: an actor that fails to start is started again and again, and what
            # it raised reaches the driver only as text.
            self.failure = error

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.failure is not None:
            raise self.failure
        return self.stage(table)


def map_stage(
    dataset: Path,
    columns: list[str],
    stage: type,
    *,
    arguments: dict[str, Any],
    resources: Resources,
    batch_size: int,
) -> Dataset:
    """Run a stage class (table in, table out) over a data set on a fixed pool of actors.

    Batches are the same whatever the number of actors.

    Raises:
        UserError: the cluster is too small for the pool, or a damaged data set.
    """
    check_resources(
        count=resources.actors,
        cpus=resources.cpus_per_actor,
        gpus=resources.gpus_per_actor,
        what=f"{stage.__name__} with {resources.actors} actors",
        spare_cpus=1,
    )
    DatasetMetadata.load(dataset)
    batches = -(-len(ShardReader(dataset)) // batch_size)
    actors = min(resources.actors, batches)
    rows = ray.data.read_parquet(str((dataset / "shards").absolute())).select_columns(columns)
    # Small Parquet data arrives as one block, and all actors but one would be idle.
    rows_per_block = batch_size * max(1, min(BATCHES_PER_BLOCK, batches // actors))
    blocks = rows.repartition(target_num_rows_per_block=rows_per_block, strict=True)
    return blocks.map_batches(
        type(stage.__name__, (_Actor,), {"stage_class": stage}),  # the dashboard shows the stage's name
        batch_size=batch_size,
        batch_format="pyarrow",
        # A fixed pool: autoscaling pools flap on autoscaling clusters.
        compute=ActorPoolStrategy(size=actors),
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        fn_constructor_kwargs={"arguments": arguments, "threads": max(1, int(resources.cpus_per_actor))},
    )


def iterate(rows: Dataset) -> Iterator[dict[str, Any]]:
    """Rows as they arrive at the driver. Raises what a stage raised, as itself."""
    with own_errors():
        yield from rows.iter_rows()


def write_shards(rows: Dataset, folder: Path) -> None:
    """Write ``rows`` as Parquet shards. Raises what a stage raised, as itself."""
    with own_errors():
        rows.write_parquet(str(folder.absolute()))


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
