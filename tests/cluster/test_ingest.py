"""Ingest on Ray: every kind of source, bad files among the good, in one shard and in many."""

import io
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.cluster.stages import ingest
from ray_wsss.cluster.stages.ingest import run_ingest
from ray_wsss.config.resources import Cluster
from ray_wsss.data.coco import read_coco
from ray_wsss.data.csv_labels import read_csv
from ray_wsss.data.folder import read_folder
from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata, SourceKind
from ray_wsss.data.source import Source
from ray_wsss.data.voc import read_voc
from ray_wsss.stages.ingest import plan_shards

GOOD = ["a1", "a2", "a3", "b1", "b2"]
BAD = {"text": b"not an image", "truncated": None, "zero": b""}
NAMES = sorted([*GOOD, *BAD])

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(GOOD):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
    for name, content in BAD.items():
        half = (folder / "a1.jpg").read_bytes()[:-200]
        (folder / f"{name}.jpg").write_bytes(half if content is None else content)


def _coco(root: Path) -> Source:
    _write_images(root / "images")
    images = [
        {"id": k, "file_name": f"{name}.jpg", "height": 20, "width": 30} for k, name in enumerate(NAMES)
    ]
    corners = [2, 2, 20, 2, 20, 10, 2, 10]
    annotations = [
        {"id": k, "image_id": k, "category_id": 7, "segmentation": [corners], "area": 144, "iscrowd": 0}
        for k in range(len(NAMES))
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "thing"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return read_coco(root / "images", root / "instances.json")


def _voc(root: Path) -> Source:
    _write_images(root / "JPEGImages")
    for folder in ("ImageSets/Main", "Annotations"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(NAMES))
    for name in NAMES:
        xml = "<annotation><object><name>cat</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    return read_voc(root, "train")


def _folder(root: Path) -> Source:
    _write_images(root / "thing")
    return read_folder(root)


def _csv(root: Path) -> Source:
    _write_images(root / "images")
    (root / "table.csv").write_text("".join(f"{name}.jpg,thing\n" for name in NAMES))
    return read_csv(root / "table.csv", root / "images")


SOURCES = {"coco": _coco, "voc": _voc, "folder": _folder, "csv": _csv}


def _ingest(source: Source, out: Path) -> DatasetMetadata:
    return run_ingest(source, out=out, max_errors=None, cluster=Cluster())


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source(kind: SourceKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES[kind](tmp_path / "source")
    # Three shards of three rows, the last with two.
    monkeypatch.setattr(ingest, "ROWS_PER_SHARD", 3)
    metadata = _ingest(source, tmp_path / "many")
    assert (metadata.images, metadata.unlabelled, metadata.errors) == (5, 0, 3)
    assert DatasetMetadata.load(tmp_path / "many") == metadata
    many = ShardReader(tmp_path / "many")
    in_order = [row.image_id for shard in plan_shards(source.rows) for row in shard]
    assert sorted(in_order) == sorted(row.image_id for row in source.rows)
    assert json.loads((tmp_path / "many" / "metadata.json").read_text())["order_seed"] == 0
    good = [image_id for image_id in in_order if image_id in many.image_ids]
    assert many.image_ids == good
    assert len(good) == 5
    errors = pq.read_table(tmp_path / "many" / "errors.parquet").to_pylist()
    assert [error["image_id"] for error in errors] == [name for name in in_order if name not in good]
    assert all(error["reason"] and error["path"] for error in errors)

    monkeypatch.setattr(ingest, "ROWS_PER_SHARD", 100)
    assert _ingest(source, tmp_path / "one") == metadata
    one = ShardReader(tmp_path / "one")
    assert [one.read(i) for i in range(5)] == [many.read(i) for i in range(5)]
    assert len(list((tmp_path / "one" / "shards").iterdir())) == 1


def test_tasks_read_masks_by_colour_and_count_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "source"
    _voc(root)
    (root / "labelmap.txt").write_text("background:0,0,0::\ncat:9,9,9::\ndog:8,8,8::\n")
    (root / "SegmentationClass").mkdir()
    Image.new("RGB", (30, 20), (8, 8, 8)).save(root / "SegmentationClass" / "a1.png")
    metadata = _ingest(read_voc(root, "train"), tmp_path / "out")
    assert (metadata.images, metadata.has_masks) == (5, True)
    reader = ShardReader(tmp_path / "out")
    mask = decode_mask(reader.read(reader.index_of("a1"), ["mask"])["mask"])
    assert (mask == 2).all()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "every image has 'cat'",
        "no image has 'dog'",
    ]


def test_images_are_the_bytes_on_disk(tmp_path: Path) -> None:
    source = _csv(tmp_path / "source")
    _ingest(source, tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    for i in range(len(reader)):
        row = reader.read(i)
        assert row["image"] == (tmp_path / "source" / "images" / row["image_id"]).read_bytes()


def test_unknown_labels_and_none_of_the_classes_stay_apart(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    _write_images(root / "thing")
    (root / "thing" / f"{NAMES[0]}.jpg").rename(root / "loose.jpg")
    metadata = _ingest(read_folder(root), tmp_path / "a")
    assert (metadata.images, metadata.unlabelled, metadata.empty) == (5, 1, 0)

    (tmp_path / "table.csv").write_text(f"thing/{NAMES[1]}.jpg,thing\nloose.jpg,\n")
    metadata = _ingest(read_csv(tmp_path / "table.csv", root), tmp_path / "b")
    assert (metadata.images, metadata.unlabelled, metadata.empty) == (2, 1, 0)

    images = [{"id": k, "file_name": name} for k, name in enumerate(("loose.jpg", f"thing/{NAMES[1]}.jpg"))]
    content = {"images": images, "categories": [{"id": 1, "name": "thing"}]}
    content["annotations"] = [{"id": 1, "image_id": 0, "category_id": 1}]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    metadata = _ingest(read_coco(root, tmp_path / "instances.json"), tmp_path / "c")
    assert (metadata.images, metadata.unlabelled, metadata.empty) == (2, 0, 1)
    reader = ShardReader(tmp_path / "c")
    assert [reader.read(k, ["image_labels"])["image_labels"] for k in range(2)] == [[0], []]


def test_a_killed_ingest_goes_on_where_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of three shards waits for an image from a server while the driver is killed."""
    (tmp_path / "images").mkdir()
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "PNG")
    names = [f"{k:03d}.png" for k in range(3 * ingest.ROWS_PER_SHARD - 1)]
    for name in names:
        (tmp_path / "images" / name).write_bytes(pixels.getvalue())
    answer = threading.Event()

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.wait(120)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pixels.getvalue())

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client is gone

    out = tmp_path / "out"
    words = [
        "ingest",
        "csv",
        "--table",
        tmp_path / "table.csv",
        "--images",
        tmp_path / "images",
        "--out",
        out,
    ]
    words = [*map(str, words), "--address", ray.get_runtime_context().gcs_address]
    with Server(("127.0.0.1", 0), Late) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        slow = f"http://127.0.0.1:{server.server_port}/slow.png"
        (tmp_path / "table.csv").write_text("".join(f"{name},a\n" for name in (*names, slow)))
        with subprocess.Popen([sys.executable, "-m", "ray_wsss", *words]) as driver:
            deadline = time.monotonic() + 600
            while len(list(out.glob("unfinished/shards/*.json"))) < 2:
                assert driver.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            driver.send_signal(signal.SIGKILL)
        kept = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
        assert len(kept) == 2
        assert not (out / "metadata.json").exists()
        answer.set()
        caplog.set_level("INFO")
        assert main(words) == 0
        server.shutdown()
    assert f"kept 2 of 3 shards of {out}, from an interrupted ingest" in caplog.messages
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}.items()
    assert sorted(ShardReader(out).image_ids) == sorted([*names, slow])
    assert sorted(path.name for path in out.iterdir()) == ["errors.parquet", "metadata.json", "shards"]
