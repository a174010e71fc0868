"""A stage class as an actor pool: the one place where rows flow through Ray Data."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from ray_wsss.cluster.session import check_resources
from ray_wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage's actor pool is given. Declared here, never probed: the driver may have no GPU."""

    actors: int = 1
    cpus_per_actor: float = 1
    gpus_per_actor: float = 0

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


def read_shards(folder: Path, columns: list[str], rows_per_block: int) -> Dataset:
    """Rows of a data set, in blocks that can be spread over actors.

    Without the repartition small Parquet data arrives as one block, and all actors but one are idle.
    """
    shards = ray.data.read_parquet(str(folder / "shards"), columns=columns)
    return shards.repartition(target_num_rows_per_block=rows_per_block)


def map_stage(
    rows: Dataset, stage: type, *, arguments: dict[str, Any], resources: Resources, batch_size: int
) -> Dataset:
    """Run a stage class (table in, table out) over ``rows`` on a fixed pool of actors.

    Raises:
        UserError: the cluster is too small for the pool.
    """
    check_resources(
        cpus=resources.actors * resources.cpus_per_actor,
        gpus=resources.actors * resources.gpus_per_actor,
        what=f"{stage.__name__} ({resources.actors} actors)",
    )
    return rows.map_batches(
        stage,
        batch_size=batch_size,
        batch_format="pyarrow",
        # A fixed pool: autoscaling pools flap on autoscaling clusters.
        compute=ActorPoolStrategy(size=resources.actors),
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        fn_constructor_kwargs=arguments,
    )


def iterate(rows: Dataset) -> Iterator[dict[str, Any]]:
    """Rows as they arrive at the driver; a stage's own UserError comes out as itself."""
    try:
        yield from rows.iter_rows()
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error


def unwrap(error: BaseException) -> BaseException:
    """The UserError behind a chain of Ray's exceptions, else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        for candidate in (seen, cause):
            if isinstance(candidate, UserError):
                return UserError(str(candidate).splitlines()[-1] if "\n" in str(candidate) else str(candidate))
        seen = cause if isinstance(cause, BaseException) and cause is not seen else seen.__cause__
    return error
