"""More nodes give the same labels, and a cluster of small nodes is enough."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from outputs import hashes

from ray_wsss.cluster import capacity
from ray_wsss.cluster.capacity import check_resources
from ray_wsss.config.resources import Resources
from ray_wsss.errors import UserError

JOB = Path(__file__).parents[2] / "jobs" / "benchmark.py"
PATIENCE_S = 1500


def run_script(*command: object) -> str:
    arguments = [sys.executable, *(str(argument) for argument in command)]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_one_two_and_four_nodes_of_one_cpu_give_the_same_labels(
    write_dataset: Callable[[Path, int], Path], classifier: Path, tmp_path: Path
) -> None:
    chunks = 5
    dataset = write_dataset(tmp_path / "scenes", 64 * chunks)
    script = Path(__file__).with_name("label_on_small_nodes.py")
    out = tmp_path / "out"
    printed = run_script(script, dataset, classifier, out)
    assert json.loads(printed.splitlines()[-1]) == {"1": 1, "2": 2, "4": 4}
    one, *more = (hashes(out / nodes) for nodes in ("1", "2", "4"))
    assert len(one) == chunks
    assert more == [one, one]


@pytest.mark.slow
def test_throughput_grows_with_the_nodes(tmp_path: Path) -> None:
    figures = tmp_path / "scale.json"
    flags = ["--nodes", 1, 4, "--seconds", 3, "--chunks", 10]
    run_script(JOB, "scale", *flags, "--work", tmp_path / "work", "--json", figures)
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["images_per_s"].keys() == {"1", "4"}
    # The 5 % that are aimed at, and as much for what else this machine does.
    assert 0.9 < found["efficiency"]["4"] < 1.1
    assert all(0.8 < share <= 1 for share in found["of_sleep"].values())


def node(cpus: float, gpus: float = 0) -> dict:
    return {"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus, "memory": cpus * 4 * 2**30}}


@pytest.mark.parametrize(
    ("nodes", "actors", "cpus", "gpus", "fits"),
    [
        ([node(1)], 1, 0.5, 0, True),
        ([node(1)], 1, 1, 0, False),
        ([node(1)] * 4, 4, 0.5, 0, True),
        ([node(0), *[node(1)] * 4], 4, 0.5, 0, True),
        ([node(1)] * 4, 8, 0.5, 0, False),
        ([node(1)] * 4, 4, 0.75, 0, False),  # a quarter is left of each, where decoding wants 0.75
        ([node(2)] * 3, 3, 1.5, 0, False),  # 1.5 in all, and no node has a whole one
        ([node(3), node(2)], 2, 1.75, 0, True),
        ([node(4)], 4, 1, 0, False),
        ([node(4)], 3, 1, 0, True),
        ([node(8, 1)], 1, 1, 1, True),
        ([node(8, 1)], 2, 1, 0.5, True),
        ([node(1, 1)], 1, 0.5, 1, False),  # beside a GPU, decoding wants a CPU
        ([{**node(8), "Resources": {"CPU": 8, "memory": 2**29}}], 1, 1, 0, False),
        ([], 1, 0.5, 0, False),
    ],
)
def test_what_a_pool_of_actors_and_their_decoding_have_room_on(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Mapping], actors: int, cpus: float, gpus: float, fits: bool
) -> None:
    monkeypatch.setattr(capacity.ray, "nodes", lambda: nodes)
    resources = Resources(actors=actors, cpus_per_actor=cpus, gpus_per_actor=gpus)

    def check() -> None:
        spare = resources.decode_share
        check_resources(count=actors, share=resources.share, what="a pool", spare=spare)

    if fits:
        check()
    else:
        with pytest.raises(UserError, match=r"a pool: .* more to read data, are asked for"):
            check()
