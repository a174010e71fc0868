"""How many trials fit: never more than can all have their workers at the same time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_wsss.cluster.tune.concurrency import plan_trials
from ray_wsss.config.resources import Workers
from ray_wsss.errors import UserError


def node(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, "memory": cpus * 4 * 2**30} | ({"GPU": gpus} if gpus else {})


def make_workers(count: int, cpus: float = 1, gpus: float = 0) -> Workers:
    return Workers(workers=count, cpus_per_worker=cpus, gpus_per_worker=gpus)


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([node(4)], make_workers(1), 4),
        ([node(4)], make_workers(2), 2),
        ([node(4)], make_workers(3), 1),
        ([node(3), node(3)], make_workers(2), 3),  # one trial lies on both nodes
        ([node(3), node(3)], make_workers(1, cpus=2), 2),  # no worker does
        ([node(0), node(16, 2), node(16, 2)], make_workers(1, 4, 1), 4),
        ([node(64, 8)], make_workers(4, 8, 1), 2),
        ([node(2, 8)], make_workers(1, 1, 1), 2),
        ([node(1)], make_workers(2, cpus=0.5), 1),
    ],
)
def test_how_many_fit(nodes: list[dict[str, float]], workers: Workers, expected: int) -> None:
    assert plan_trials(nodes, workers)[0] == expected


def test_the_arithmetic_is_shown() -> None:
    _, said = plan_trials([node(4), node(4)], make_workers(2, cpus=2))
    assert said == (
        "a trial takes 2 workers of 2 CPUs, 0 GPUs and 1 GiB of memory; "
        "the cluster has 8 CPUs, 0 GPUs and 32 GiB of memory on 2 nodes, "
        "room for 4 such workers: 2 trials at a time"
    )
    at_once, said = plan_trials([node(4)], make_workers(1), most=2)
    assert at_once == 2
    assert said.endswith("2 trials at a time (no more, by --max-concurrent; 4 would fit)")


@pytest.mark.parametrize(
    ("nodes", "workers", "words"),
    [
        (
            [node(4)],
            make_workers(5),
            "5 workers of 1 CPU, 0 GPUs and 1 GiB of memory; the cluster has 4 CPUs",
        ),
        ([node(2), node(2)], make_workers(1, cpus=3), "room for 0 such workers; expected room for 1"),
        (
            [node(4)],
            make_workers(1, 1, 1),
            "1 worker of 1 CPU, 1 GPU and 1 GiB of memory; the cluster has 4 CPUs, 0 GPUs",
        ),
        ([], make_workers(1), "0 CPUs, 0 GPUs and 0 GiB of memory on 0 nodes"),
    ],
)
def test_what_never_fits_is_refused(nodes: list[dict[str, float]], workers: Workers, words: str) -> None:
    with pytest.raises(UserError) as refusal:
        plan_trials(nodes, workers)
    assert words in str(refusal.value)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=4),
    st.integers(1, 4),
    st.sampled_from([0.5, 1, 2, 3]),
    st.sampled_from([0, 1]),
)
def test_all_that_run_at_once_find_a_place(
    nodes: list[tuple[int, int]], count: int, cpus: float, gpus: int
) -> None:
    workers = make_workers(count, cpus, gpus)
    try:
        at_once, _ = plan_trials([node(*n) for n in nodes], workers)
    except UserError:
        at_once = 0
    left = [list(n) for n in nodes]
    placed = 0
    while True:
        fits = [n for n in left if n[0] >= cpus and n[1] >= gpus]
        if not fits:
            break
        fits[0][0] -= cpus  # type: ignore[call-overload]
        fits[0][1] -= gpus
        placed += 1
    assert at_once == placed // count
