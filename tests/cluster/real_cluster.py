"""A cluster as an operator starts it: nodes and jobs by Ray's own commands, the token on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

Started = TypeVar("Started", bound="RealCluster")
PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE_S = 180
LIGHT = ["--object-store-memory", str(200 * 2**20), "--include-log-monitor", "false"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.05)


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def running(make: Callable[[Path], Started]) -> Iterator[Started]:
    """A cluster that ``make`` builds in a folder of its own, started; it is stopped at the end."""
    # Not a folder of pytest's: the path of a socket in it has at most 107 characters.
    with TemporaryDirectory(prefix="rw_", ignore_cleanup_errors=True) as folder:
        cluster = make(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def label_job(scenes: Path, classifier: Path, out: Path, *flags: str) -> list[str]:
    """Words of a job that labels scenes."""
    paths = ["--dataset", str(scenes), "--classifier", str(classifier), "--out", str(out)]
    return ["python", "jobs/label.py", "--preset", "demo", "--label.scales", "1.0", *paths, *flags]


@dataclass
class RealCluster:
    """Raylets as processes of their own, and jobs that are submitted to them over HTTP."""

    folder: Path
    gcs_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """Of an operator and of whoever submits jobs."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return own | {
            "PATH": f"{BIN}:{own['PATH']}",
            "RAY_AUTH_MODE": "token",
            "HOME": str(self.folder),  # where Ray keeps the token
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # the default, 15, has workers starve beside other programs
        }

    def start(self, *flags: str) -> None:
        """The head, without CPUs: it has the job server and the drivers of jobs.

        Args:
            flags: further flags of ``ray start``.
        """
        generate = [str(BIN / "ray"), "get-auth-token", "--generate"]
        subprocess.run(generate, env=self.env, check=True, capture_output=True)
        ports = ["--port", str(self.gcs_port), "--dashboard-port", str(self.http_port)]
        self._start_node("--head", "--num-cpus", "0", *ports, *flags)
        wait_until(self._head_takes_jobs, "the job server")

    def _head_takes_jobs(self) -> bool:
        assert self.nodes[0].poll() is None, (self.folder / "node_0.log").read_text()[-2000:]
        return self.run_job("true")[0] == 0

    def add_node(self, cpus: int, gpus: int = 0) -> None:
        address = ["--address", f"127.0.0.1:{self.gcs_port}"]
        before = self.count_nodes()
        self._start_node(*address, "--num-cpus", str(cpus), "--num-gpus", str(gpus))
        wait_until(lambda: self.count_nodes() == before + 1, "a node")

    def _start_node(self, *flags: str) -> None:
        name = f"node_{len(self.nodes)}"
        # As on a machine of its own: nodes that share a folder unpack a job's files over each other.
        own = ["--temp-dir", str(self.folder / name), "--dashboard-agent-listen-port", str(free_port())]
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *flags, *own, *LIGHT]
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            self.nodes.append(subprocess.Popen(command, env=self.env, stdout=file, stderr=file))

    def nodes_alive(self) -> list[dict[str, Any]]:
        listed = self.ray("list", "nodes", "--filter", "state=ALIVE", "--detail", "--format", "json")
        return json.loads(listed.stdout) if listed.returncode == 0 else []

    def count_nodes(self) -> int:
        """The head is one."""
        return len(self.nodes_alive())

    def running_jobs(self) -> list[str]:
        listed = self.ray("list", "jobs", "--filter", "status=RUNNING", "--format", "json")
        return [job["submission_id"] for job in json.loads(listed.stdout)]

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of Ray's commands; ``job`` and ``list`` speak HTTP."""
        command = [str(BIN / "ray"), *words, "--address", f"http://127.0.0.1:{self.http_port}"]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=2 * PATIENCE_S)

    def get(self, path: str) -> Any:
        """What the dashboard's server answers, as JSON."""
        token = (self.folder / ".ray" / "auth_token").read_text()
        url = f"http://127.0.0.1:{self.http_port}{path}"
        try:
            with urlopen(Request(url, headers={"Authorization": f"Bearer {token}"})) as answer:
                return json.loads(answer.read())
        except HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from error

    def start_job(self, *entrypoint: str) -> subprocess.Popen[str]:
        """``ray job submit`` from a clone; it follows the job to its end and exits as the job does."""
        address = ["--address", f"http://127.0.0.1:{self.http_port}"]
        command = [
            str(BIN / "ray"),
            "job",
            "submit",
            *address,
            "--working-dir",
            str(PROJECT),
            "--",
            *entrypoint,
        ]
        out = subprocess.PIPE
        return subprocess.Popen(command, env=self.env, stdout=out, stderr=subprocess.STDOUT, text=True)

    def run_job(self, *entrypoint: str) -> tuple[int, str]:
        """Exit status and what was printed."""
        with self.start_job(*entrypoint) as job:
            told, _ = job.communicate(timeout=4 * PATIENCE_S)
        return job.returncode, told

    def raylets_of(self, actor: str) -> list[int]:
        """Process ids of the raylets of this cluster that run actors of a class, once for each actor."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile
                title = command_of(int(process.name))
                raylet = parent_of(int(process.name))
                if title.startswith("ray::") and actor in title and str(self.folder) in command_of(raylet):
                    found.append(raylet)
        return found

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.send_signal(signal.SIGTERM)
        for node in self.nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
