"""Clusters whose autoscaler starts nodes on demand, from none to some and back, with Ray's own autoscaler."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from growing_cluster import GrowingCluster
from outputs import hashes
from real_cluster import label_job, running, wait_until

pytestmark = pytest.mark.cluster

CHUNKS = 4


@pytest.fixture(scope="module", params=[1, 2], ids=["autoscaler_1", "autoscaler_2"])
def cluster(request: pytest.FixtureRequest) -> Iterator[GrowingCluster]:
    with running(lambda folder: GrowingCluster(folder, autoscaler=request.param)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scenes(write_dataset: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scenes") / "many", CHUNKS * 64)


def test_a_cluster_without_nodes_gets_some_labels_and_gives_them_back(
    cluster: GrowingCluster, scenes: Path, classifier: Path, tmp_path: Path
) -> None:
    assert cluster.count_nodes() == 1  # the head, without CPUs
    began = time.time()
    flags = ["--sam-actors", "3", "--wait-for-nodes", "5"]
    status, told = cluster.run_job(*label_job(scenes, classifier, tmp_path / "grown", *flags))
    ended = time.time()
    assert status == 0, told
    first = min(part.stat().st_mtime for part in (tmp_path / "grown" / "shards").iterdir())
    print(f"from submission: {first - began:.0f} s to the first labels, {ended - began:.0f} s to the end")
    assert "label waits for nodes: it wants 3 x 1 CPU, 0 GPUs and 1 GiB of memory, " in told
    assert "there is room for 0; it gives up after 5 minutes" in told

    status, in_process = cluster.run_job(
        *label_job(scenes, classifier, tmp_path / "here", "--sam-actors", "0")
    )
    assert status == 0, in_process
    assert hashes(tmp_path / "grown") == hashes(tmp_path / "here")
    wait_until(lambda: cluster.count_nodes() == 1, "the idle nodes to end")


def test_what_no_node_type_has_is_refused_after_the_time_to_wait(
    cluster: GrowingCluster, scenes: Path, classifier: Path, tmp_path: Path
) -> None:
    impossible = ["--sam-actors", "1", "--num-cpus-per-actor", "3", "--wait-for-nodes", "0.5"]
    status, told = cluster.run_job(*label_job(scenes, classifier, tmp_path / "out", *impossible))
    assert status == 1, told
    assert "label: 1 x 3 CPUs" in told
    assert ("the cluster's autoscaler can't add" in told) == (cluster.autoscaler == 2)
    assert "are asked for, but the Ray cluster has " in told
