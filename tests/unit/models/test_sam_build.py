"""SAM's weights: from a file, from the package, downloaded and verified."""

import hashlib
import http.client
import pickle
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file

from ray_wsss.config import SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.sam.build import (
    PUBLISHED,
    PublishedCheckpoint,
    build_sam,
    resolve_checkpoint,
    sam_sha256,
)
from ray_wsss.models.sam.tiny import build_tiny_sam, tiny_checkpoint


def tiny(path: Path) -> SamConfig:
    return SamConfig(name="tiny", checkpoint=str(path))


def test_shipped_weights(tiny_sam):
    assert tiny_checkpoint().stat().st_size < 4 * 2**20
    assert not tiny_sam.training
    parameters = dict(tiny_sam.named_parameters())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in parameters.values())
    assert all(p.isfinite().all() for p in parameters.values())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    torch.manual_seed(3)
    state = build_tiny_sam().state_dict()
    path = tmp_path / f"sam{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    loaded = build_sam(tiny(path)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_missing_file():
    with pytest.raises(UserError, match=r"sam.checkpoint /nowhere/sam.pth does not exist"):
        build_sam(SamConfig(name="vit_b", checkpoint="/nowhere/sam.pth"))


def test_weights_of_another_size(tmp_path):
    state = build_tiny_sam().state_dict()
    narrow = {name: value[..., :1].contiguous() for name, value in state.items()}
    other = {"network.weight": torch.zeros(3)}
    for k, wrong in enumerate((narrow, other)):
        path = tmp_path / f"{k}.safetensors"
        save_file(wrong, path)
        with pytest.raises(UserError, match="does not fit SAM tiny"):
            build_sam(tiny(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"text", b"a.b", b"\x89PNG\r\n\x1a\n" + bytes(9), b"PK\x03\x04 cut"]
)
def test_other_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"sam{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"sam.checkpoint .* (is not a file of weights|does not fit)"):
        build_sam(tiny(path))


def test_a_list_is_no_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        build_sam(tiny(tmp_path / "list.pth"))


@dataclass
class Touch:
    """Unpickling this makes a file."""

    path: Path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_pickle_never_runs(tmp_path, writer):
    path, marker = tmp_path / "sam.pth", tmp_path / "ran"
    if writer == "torch":
        torch.save({"weight": Touch(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Touch(marker)}))
    with pytest.raises(UserError, match="is not a file of weights"):
        build_sam(tiny(path))
    assert not marker.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert marker.exists()  # so the file would have done it


@dataclass(frozen=True)
class LocalCheckpoint(PublishedCheckpoint):
    source: str = ""

    @property
    def url(self) -> str:
        return self.source


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Let SAM vit_b be a local file with the given content and stated hash."""

    def do(content: bytes | None, sha256: str) -> tuple[Path, Path]:
        source, cache = tmp_path / "served.pth", tmp_path / "cache"
        if content is not None:
            source.write_bytes(content)
        monkeypatch.setitem(PUBLISHED, "vit_b", LocalCheckpoint("sam_b.pth", sha256, source.as_uri()))
        return source, cache

    return do


def files_in(cache: Path) -> list[Path]:
    """All but locks."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


VIT_B = SamConfig(name="vit_b")
CONTENT = bytes(range(256)) * 10_000


def test_a_download_with_the_right_hash_is_kept(publish, monkeypatch):
    source, cache = publish(CONTENT, hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("RAY_WSSS_CACHE", str(cache))
    path = resolve_checkpoint(VIT_B)
    assert path == cache / "sam_b.pth"
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == [path]
    source.unlink()
    assert resolve_checkpoint(VIT_B) == path


def test_a_download_with_another_hash_is_refused(publish):
    _, cache = publish(CONTENT, hashlib.sha256(b"other").hexdigest())
    with pytest.raises(UserError, match=f"{hashlib.sha256(CONTENT).hexdigest()}; expected"):
        resolve_checkpoint(VIT_B, cache)
    assert files_in(cache) == []


def test_offline_the_error_says_what_to_put_where(publish):
    _, cache = publish(None, "0")
    with pytest.raises(UserError, match=rf"put sam_b.pth at {cache}/sam_b.pth.*sam.checkpoint.*lite"):
        resolve_checkpoint(VIT_B, cache)
    assert files_in(cache) == []


def test_a_broken_connection_is_a_user_error(publish, monkeypatch):
    _, cache = publish(CONTENT, "0")

    def fail(*_, **__):
        raise http.client.IncompleteRead(b"")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(UserError, match="can't be downloaded"):
        resolve_checkpoint(VIT_B, cache)
    assert files_in(cache) == []


def test_an_interrupted_download_leaves_nothing(publish, monkeypatch):
    _, cache = publish(CONTENT, hashlib.sha256(CONTENT).hexdigest())

    class Interrupted:
        def __enter__(self):
            self.read = lambda _: next(self.chunks)
            self.chunks = self._chunks()
            return self

        def _chunks(self):
            yield CONTENT[:100]
            raise KeyboardInterrupt

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        resolve_checkpoint(VIT_B, cache)
    assert files_in(cache) == []


class Server(ThreadingHTTPServer):
    """Serves `CONTENT` slowly, or only its first ``sent`` bytes; counts requests."""

    def __init__(self, sent: int = len(CONTENT)) -> None:
        self.sent, self.requests = sent, 0
        super().__init__(("127.0.0.1", 0), Serve)
        self.url = f"http://127.0.0.1:{self.server_port}/sam_b.pth"

    def __enter__(self) -> "Server":
        self.thread = Thread(target=self.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Serve(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1000])
        time.sleep(1)  # long enough for every process to want the file
        self.wfile.write(CONTENT[1000 : self.server.sent])

    def log_message(self, format: str, *args: object) -> None:
        pass


FETCH = """
import sys
from pathlib import Path
from ray_wsss.config import SamConfig
from ray_wsss.models.sam import build

class Local(build.PublishedCheckpoint):
    url = sys.argv[1]

build.PUBLISHED["vit_b"] = Local("sam_b.pth", sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(len(build.resolve_checkpoint(SamConfig(name="vit_b"), Path(sys.argv[3])).read_bytes()))
"""


def test_processes_of_one_machine_download_once(tmp_path):
    with Server() as server:
        command = [
            sys.executable,
            "-c",
            FETCH,
            server.url,
            hashlib.sha256(CONTENT).hexdigest(),
            str(tmp_path),
        ]
        pipe = subprocess.PIPE
        processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60)[0] for process in processes]
    assert told == [f"{len(CONTENT)}\n"] * 3
    assert server.requests == 1
    assert files_in(tmp_path) == [tmp_path / "sam_b.pth"]


def test_a_download_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    for sent in (2000, len(CONTENT)):
        with Server(sent) as server:
            monkeypatch.setitem(PUBLISHED, "vit_b", LocalCheckpoint("sam_b.pth", sha256, server.url))
            if sent < len(CONTENT):
                with pytest.raises(UserError, match=r"can't be downloaded \(IncompleteRead"):
                    resolve_checkpoint(VIT_B, tmp_path)
                assert files_in(tmp_path) == []
            else:  # and the next attempt begins anew
                assert resolve_checkpoint(VIT_B, tmp_path).read_bytes() == CONTENT


def test_the_hash_of_a_published_file_needs_no_file(publish, monkeypatch):
    _, cache = publish(None, "abc")
    monkeypatch.setenv("RAY_WSSS_CACHE", str(cache))
    assert sam_sha256(VIT_B) == "abc"
    assert not cache.exists()
    shipped = hashlib.sha256(tiny_checkpoint().read_bytes()).hexdigest()
    for checkpoint in (None, str(tiny_checkpoint())):
        assert sam_sha256(SamConfig(name="tiny", checkpoint=checkpoint)) == shipped
    assert sam_sha256(SamConfig(name="vit_b", checkpoint=str(tiny_checkpoint()))) == shipped


def test_another_file_in_the_place_of_a_published_one_is_refused(publish):
    """Manifests note the published hash without a look at the file."""
    _, cache = publish(CONTENT, hashlib.sha256(CONTENT).hexdigest())
    cache.mkdir()
    (cache / "sam_b.pth").write_bytes(b"other")
    with pytest.raises(UserError, match=rf"{cache}/sam_b.pth has SHA-256 .*; expected"):
        resolve_checkpoint(VIT_B, cache)


def test_published_hashes_are_whole():
    assert set(PUBLISHED) == {"vit_b", "vit_l", "vit_h"}
    assert all(len(bytes.fromhex(p.sha256)) == 32 for p in PUBLISHED.values())
