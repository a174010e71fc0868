"""A cluster of raylets that are processes of their own, used as by its users: ``ray job submit``, HTTP."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from real_cluster import PATIENCE_S, RealCluster, label_job, running, wait_until

from ray_wsss.cluster.names import training_name

pytestmark = pytest.mark.cluster

CHUNKS = 8
PIPELINE = [
    *("--preset", "demo", "--workers", "2", "--sam-actors", "2"),
    *("--classifier.batch-size", "8", "--classifier.max-iters", "60", "--classifier.checkpoint-every", "10"),
    *(
        "--cpm.warmup-iters",
        "30",
        "--label.scales",
        "1.0",
        "--segmenter.batch-size",
        "8",
        "--segmenter.max-iters",
        "20",
    ),
]


@pytest.fixture(scope="module")
def real_cluster() -> Iterator[RealCluster]:
    """A head, on which no work is done."""
    with running(RealCluster) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scenes(write_dataset: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    (write_dataset(folder / "to_measure", 64)).rename(folder / "few")
    return write_dataset(folder / "to_train", CHUNKS * 64).rename(folder / "many")


@pytest.fixture
def cluster(real_cluster: RealCluster) -> RealCluster:
    """A head and two nodes of four CPUs; those that an earlier test has killed are replaced."""
    while real_cluster.count_nodes() < 3:
        real_cluster.add_node(cpus=4)
    return real_cluster


@pytest.fixture(scope="module")
def undisturbed(real_cluster: RealCluster, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    while real_cluster.count_nodes() < 3:
        real_cluster.add_node(cpus=4)
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    status, told = real_cluster.run_job(*run_all(scenes, out))
    assert status == 0, told
    return out


def run_all(scenes: Path, out: Path) -> list[str]:
    paths = ["--dataset", str(scenes), "--validation", str(scenes.parent / "few"), "--out", str(out)]
    return ["python", "jobs/run_all.py", *paths, *PIPELINE]


def parts(labels: Path) -> list[Path]:
    return sorted((labels / "shards").glob("*.parquet"))


def wait_while_at_work(job: subprocess.Popen[str], condition: Callable[[], object], what: str) -> None:
    wait_until(lambda: condition() or job.poll() is not None, what)
    assert job.poll() is None, job.communicate()[0]


def lose_a_node(cluster: RealCluster, job: subprocess.Popen[str], actor: str) -> None:
    """Kill the raylet under an actor while the job works, and bring another node, as an autoscaler would."""
    os.kill(cluster.raylets_of(actor)[0], signal.SIGKILL)
    wait_while_at_work(job, lambda: cluster.count_nodes() < 3, "the loss of a node to be seen")
    cluster.add_node(cpus=4)


@pytest.mark.usefixtures("undisturbed")
def test_the_dashboard_calls_runs_after_their_folders(real_cluster: RealCluster) -> None:
    trainings = real_cluster.get("/api/train/v2/runs/v1")["train_runs"]
    assert {"run-classifier", "run-segmenter"} <= {training["name"] for training in trainings}
    jobs = real_cluster.get("/api/v0/jobs")["data"]["result"]["result"]
    datasets = [
        dataset["dataset"]
        for job in jobs
        if job["job_id"]
        for dataset in real_cluster.get(f"/api/data/datasets/{job['job_id']}")["datasets"]
    ]
    assert any(name.startswith("run-labels_") for name in datasets), datasets


def test_the_whole_pipeline_while_nodes_die(
    cluster: RealCluster, undisturbed: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with cluster.start_job(*run_all(scenes, out)) as job:
        checkpoints = out / "classifier" / training_name(out / "classifier")
        wait_while_at_work(job, lambda: list(checkpoints.glob("checkpoint_*")), "a checkpoint")
        assert not (out / "classifier" / "model.safetensors").exists()
        lose_a_node(cluster, job, "RayTrainWorker")
        wait_while_at_work(job, lambda: parts(out / "labels"), "labels")
        assert len(parts(out / "labels")) < CHUNKS
        lose_a_node(cluster, job, "SamLabeller")
        told, _ = job.communicate(timeout=2 * PATIENCE_S)
    assert job.returncode == 0, told
    for model in ("classifier/model.safetensors", "segmenter/model.safetensors"):
        assert (out / model).read_bytes() == (undisturbed / model).read_bytes()
    assert [part.read_bytes() for part in parts(out / "labels")] == [
        part.read_bytes() for part in parts(undisturbed / "labels")
    ]
    figures = [json.loads((run / "metrics.json").read_text()) for run in (out, undisturbed)]
    assert figures[0] == figures[1]


def test_a_stopped_job_leaves_no_actor_and_is_resumed(
    cluster: RealCluster, undisturbed: Path, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    with cluster.start_job(*label_job(scenes, undisturbed / "classifier", out)) as job:
        wait_while_at_work(job, lambda: parts(out), "labels")
        (name,) = cluster.running_jobs()
        assert cluster.ray("job", "stop", name).returncode == 0
        told, _ = job.communicate(timeout=PATIENCE_S)
    assert "was stopped" in told  # Ray's command exits with 0 here
    assert len(parts(out)) < CHUNKS
    wait_until(lambda: not cluster.raylets_of("SamLabeller"), "the actors' end")
    status, told = cluster.run_job(*label_job(scenes, undisturbed / "classifier", out))
    assert status == 0, told
    assert "images are done already" in told
    tables = [pq.read_table(labels / "shards") for labels in (out, undisturbed / "labels")]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("entrypoint", "words"),
    [
        (["python", "jobs/label.py", "--tau", "1"], "Unrecognized"),
        (
            ["python", "jobs/embed.py", "--dataset", "data/photos", "--out", "/tmp/never"],
            "ray-wsss: --dataset is data/photos, and a job runs in a folder of its own",
        ),
        (
            ["python", "jobs/embed.py", "--preset", "demo", "--dataset", "/nowhere", "--out", "/tmp/never"],
            "ray-wsss: /nowhere is not a finished data set",
        ),
    ],
)
def test_a_job_that_fails_says_so(cluster: RealCluster, entrypoint: list[str], words: str) -> None:
    status, told = cluster.run_job(*entrypoint)
    assert status != 0
    assert words in told
    assert "Traceback" not in told


def test_too_little_is_said_at_once(cluster: RealCluster, scenes: Path, tmp_path: Path) -> None:
    flags = [
        "--preset",
        "demo",
        "--dataset",
        str(scenes),
        "--out",
        str(tmp_path / "out"),
        "--sam-actors",
        "4",
    ]
    status, told = cluster.run_job("python", "jobs/embed.py", *flags, "--num-gpus-per-actor", "1")
    assert status == 1
    assert "SamEmbedder with 4 actors: 4 x 1 CPU, 1 GPU and 1 GiB of memory" in told
    assert "the Ray cluster has 8 CPUs, 0 GPUs" in told


def test_the_job_runs_what_was_sent_along(cluster: RealCluster) -> None:
    status, told = cluster.run_job("python", "-c", "import ray_wsss; print(ray_wsss.__file__)")
    assert status == 0
    assert "_ray_pkg_" in told


def test_strangers_stay_outside(cluster: RealCluster) -> None:
    url = f"http://127.0.0.1:{cluster.http_port}"
    command = ["ray", "job", "list", "--address", url]
    without = cluster.env | {"RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run(command, env=without, capture_output=True, text=True, timeout=PATIENCE_S)
    assert refused.returncode != 0
    assert "Authentication" in refused.stderr
    token = (cluster.folder / ".ray" / "auth_token").read_text().strip()
    status, told = cluster.run_job("python", "jobs/label.py", "--help")
    assert status == 0
    assert token not in told
    with socket.socket() as client:
        other_address = socket.gethostbyname(socket.gethostname())
        if not other_address.startswith("127."):
            assert client.connect_ex((other_address, cluster.http_port)) != 0


def test_sam_is_where_the_gpus_are(
    cluster: RealCluster, undisturbed: Path, scenes: Path, tmp_path: Path
) -> None:
    cluster.add_node(cpus=4, gpus=2)
    paths = [str(scenes), str(undisturbed / "classifier"), str(tmp_path / "labels")]
    status, told = cluster.run_job("python", "tests/cluster/place_on_gpus.py", *paths)
    assert status == 0, told
    nodes = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
    with_gpus = {node["node_id"] for node in cluster.nodes_alive() if node["resources_total"].get("GPU")}
    assert set(nodes["SamLabeller"]) == with_gpus
    assert nodes["decode_images"]
    assert not set(nodes["decode_images"]) & with_gpus
