"""Ingest on Ray of images behind URIs and in containers: every image once, with its label."""

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata

pytestmark = pytest.mark.usefixtures("ray_cluster")

PICTURES: dict[str, bytes] = {}
for _k in range(6):
    _buffer = io.BytesIO()
    _pixels = np.random.default_rng(_k).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(_pixels).save(_buffer, "PNG")
    PICTURES[f"{_k}.png"] = _buffer.getvalue()
CLASS_OF = {name: k % 2 for k, name in enumerate(PICTURES)}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server of the pictures; its address."""
    folder = tmp_path / "web"
    folder.mkdir()
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ingest(out: Path, classes: Path, *words: object) -> dict[str, tuple[bytes, list[int]]]:
    """Bytes and labels of the images that a command ingests, by the last part of their ids."""
    classes.write_text("even\nodd\n")
    assert main([str(w) for w in ("ingest", *words, "--classes", classes, "--out", out)]) == 0
    assert DatasetMetadata.load(out).class_names == ("even", "odd")
    reader = ShardReader(out)
    rows = map(reader.read, range(len(reader)))
    return {Path(row["image_id"]).stem: (row["image"], row["image_labels"]) for row in rows}


EXPECTED = {Path(name).stem: (data, [CLASS_OF[name]]) for name, data in PICTURES.items()}


def test_uris_of_two_kinds(tmp_path: Path, bucket: Path, web: str) -> None:
    lines, store = [], str(bucket).rstrip("/")
    for k, (name, data) in enumerate(PICTURES.items()):
        if k < 3:
            (bucket / name).write_bytes(data)
        lines.append(f"{store if k < 3 else web}/{name},{('even', 'odd')[k % 2]}\n")
    lines += [f"{store}/absent.png,even\n", f"{web}/absent.png,odd\n"]
    (tmp_path / "t.csv").write_text("".join(lines))
    out = tmp_path / "out"
    found = ingest(
        out, tmp_path / "classes", "csv", "--table", tmp_path / "t.csv", "--requests-per-host", "2"
    )
    assert found == EXPECTED
    errors = pq.read_table(out / "errors.parquet").to_pylist()
    assert sorted(error["reason"] for error in errors) == [
        "can't be downloaded: the server answers 404 File not found",
        "no such file: absent.png",
    ]


def test_tars_and_tables(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / f"in/{shard}.tar", "w") as tar:
            for name in list(PICTURES)[shard * 3 : shard * 3 + 3]:
                files = {name: PICTURES[name], f"{name[:-4]}.cls": str(CLASS_OF[name]).encode()}
                for member, data in files.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    columns = {"image": list(PICTURES.values()), "label": list(CLASS_OF.values()), "id": list(PICTURES)}
    pq.write_table(pa.table(columns), tmp_path / "in/t.parquet", row_group_size=2)
    classes = tmp_path / "classes"
    tars = ("webdataset", "--tars", f"{tmp_path}/in/*.tar")
    assert ingest(tmp_path / "a", classes, *tars) == EXPECTED
    table = ("parquet", "--files", tmp_path / "in/t.parquet", "--id-column", "id")
    assert ingest(tmp_path / "b", classes, *table) == EXPECTED
    source = json.loads((tmp_path / "b/metadata.json").read_text())["source"]
    assert source == "parquet"
