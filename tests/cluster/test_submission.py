"""What travels with a job, and commands that are submitted as jobs."""

import os
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from ray_wsss.cli import main
from ray_wsss.cluster.submit import describe, why_ended
from ray_wsss.version import __version__

PROJECT = Path(__file__).parents[2]


def test_a_clone_with_data_in_it_uploads_its_code_alone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", PROJECT, clone], check=True)
    for name in (".gitignore", ".rayignore"):  # as they are now, committed or not
        (clone / name).write_bytes((PROJECT / name).read_bytes())
    for name in ("data/photos.bin", "runs/labels.bin", "demo/overview.bin", ".venv/lib/torch.bin"):
        (clone / name).parent.mkdir(parents=True)
        with (clone / name).open("wb") as file:
            file.truncate(150 * 2**20)
    package = tmp_path / "package.zip"
    create_package(str(clone), package, include_gitignore=True)  # what ray job submit --working-dir does
    names = zipfile.ZipFile(package).namelist()
    assert any(name.endswith("jobs/label.py") for name in names)
    assert any(name.endswith("ray_wsss/models/sam/tiny.safetensors") for name in names)
    assert not [name for name in names if name.endswith(".bin") or "/tests/" in name or ".git/" in name]
    print(f"{package.stat().st_size:,} bytes")
    assert package.stat().st_size < 20 * 2**20


@pytest.mark.parametrize(
    "words", [["label", "--dataset", "s3://b/d"], ["label", "--address", "auto"]], ids=["label", "address"]
)
def test_a_missing_token_is_told_at_once(words: list[str], tmp_path: Path) -> None:
    began = time.monotonic()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    flags = ["--dataset", "/data", "--classifier", "/classifier", "--out", "/out"]
    command = [sys.executable, "-m", "ray_wsss", "submit", "--address", "http://127.0.0.1:1", "--"]
    run = subprocess.run([*command, words[0], *flags], env=env, capture_output=True, text=True)
    assert run.returncode == 1
    assert "RAY_AUTH_TOKEN" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert time.monotonic() - began < 10


class Refusal(BaseHTTPRequestHandler):
    """Answers as Ray's job server does where a token is missing."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_refused_token_is_told_with_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        flags = ["--dataset", "/data", "--classifier", "/classifier", "--out", "/out"]
        assert main(["submit", "--address", address, "--", "label", *flags]) == 1
        server.shutdown()
    told = capsys.readouterr().err
    assert told.startswith(f"ray-wsss: the job server at {address} refuses the token; expected RAY_AUTH_MODE")


def test_the_end_of_a_job_is_told_without_its_log() -> None:
    ended = "Job entrypoint command failed with exit code 1"
    log = ", last available logs (truncated to 20,000 chars):\nray-wsss: no such folder\n"
    assert why_ended(ended + log) == ended
    assert why_ended(None) == why_ended("") == "no reason given"


def test_a_command_that_is_wrong_is_not_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["submit", "--address", "http://127.0.0.1:1", "--", "label", "--datasett", "x"])
    assert "--datasett" in capsys.readouterr().err
    assert main(["submit", "--address", "http://127.0.0.1:1"]) == 1
    assert "submit has no command" in capsys.readouterr().err
    assert main(["submit", "--address", "http://127.0.0.1:1", "--", "demo"]) == 1
    assert "--out is demo, and a job runs in a folder of its own" in capsys.readouterr().err


def test_the_dashboard_shows_a_jobs_folders() -> None:
    shown = describe(["label", "--dataset", "/data", "--out=/out", "--label.tau", "0.3"])
    assert shown == {
        "command": "ray-wsss label",
        "ray-wsss": __version__,
        "dataset": "/data",
        "out": "/out",
    }


def test_a_job_server_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", "/data", "--classifier", "/classifier", "--out", "/out"]
    assert main(["submit", "--address", "http://127.0.0.1:1", "--", "label", *flags]) == 1
    told = capsys.readouterr().err
    assert told.startswith("ray-wsss: the job server at http://127.0.0.1:1 does not take the job: ")
    assert len(told.splitlines()) == 1
