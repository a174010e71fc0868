"""Images behind URIs: tried again, few at a time, and an error row at last."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ray_wsss.data.images import ImageError
from ray_wsss.data.schema import SourceRow
from ray_wsss.data.sources import web
from ray_wsss.data.sources.contents import Contents


class Server(ThreadingHTTPServer):
    """Answers by the path: ok, flaky (503 twice), cut (ends early once), slow, moved, gone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.now, self.most = 0, 0
        self.lock = threading.Lock()

    def uri(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
            count = self.server.asked[self.path]
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        if "slow" in self.path:
            time.sleep(0.05)
        with self.server.lock:
            self.server.now -= 1
        body = self.path.encode()
        status = 404 if "gone" in self.path else 503 if "flaky" in self.path and count < 3 else 200
        if "down" in self.path:
            status = 503
        if "moved" in self.path:
            status = 302
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/ok")
        if status == 503:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:2] if "cut" in self.path and count == 1 else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(web, "_FIRST_WAIT_S", 0.001)
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def row(path: str, **fields) -> SourceRow:
    return SourceRow(image_id=path, path=path, **fields)


def test_failures_that_pass_are_tried_again(server):
    names = ["ok", "flaky", "cut", "moved?x=1"]
    rows = [row(server.uri(name)) for name in names]
    with Contents(rows) as contents:
        assert [contents.read(r) for r in rows] == [b"/ok", b"/flaky", b"/cut", b"/ok"]
    assert (server.asked["/flaky"], server.asked["/cut"]) == (3, 2)


def test_failures_that_stay_are_reasons_without_the_uri(server):
    rows = [row(server.uri(name)) for name in ("gone?sign=secret", "down?sign=secret")]
    rows += [row("http://127.0.0.1:9/x?sign=secret"), row("http://[::1/x?sign=secret")]
    reasons = []
    with Contents(rows) as contents:
        for each in rows:
            with pytest.raises(ImageError) as raised:
                contents.read(each)
            reasons.append(str(raised.value))
    assert reasons[0] == "can't be downloaded: the server answers 404 Not Found"
    assert reasons[1] == "can't be downloaded: the server answers 503 Service Unavailable"
    assert reasons[2] == "can't be downloaded: the server can't be reached"
    assert reasons[3].startswith("can't be downloaded: the address can't be used")
    assert not any("secret" in reason for reason in reasons)
    assert server.asked["/gone?sign=secret"] == 1  # no use in asking again
    assert server.asked["/down?sign=secret"] == 6


def test_requests_to_a_host_are_few_at_a_time(server):
    rows = [row(server.uri(f"slow{k}")) for k in range(12)]
    with Contents(rows, requests_per_host=3) as contents:
        assert [contents.read(r) for r in reversed(rows)] == [f"/slow{k}".encode() for k in range(11, -1, -1)]
    assert server.most == 3
    assert max(server.asked.values()) == 1


def test_waiting_requests_end_with_the_context(server):
    rows = [row(server.uri(f"slow{k}")) for k in range(50)]
    with Contents(rows, requests_per_host=1) as contents:
        contents.read(rows[0])
    assert len(server.asked) < 10


def test_parts_of_files(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    inside, beyond = row(str(path), byte_range=(2, 3)), row(str(path), byte_range=(8, 3))
    with Contents([inside, beyond]) as contents:
        assert contents.read(inside) == b"234"
        with pytest.raises(ImageError, match=r"a.tar ends inside the image"):
            contents.read(beyond)
