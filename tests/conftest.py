"""What integration and cluster tests share: one Ray, a small data set, a classifier and its labels.

torch and Ray are imported by the fixtures that need them, so that pytest's first line does not wait for them.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import settings

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.coco import read_coco
from ray_wsss.data.scene_coco import write_scene_coco
from ray_wsss.data.scenes import make_scene
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.runs.manifest import Output
from ray_wsss.stages.ingest import IngestShard, begin_ingest, finish_ingest
from ray_wsss.storage import filesystem_of, parse_path

if TYPE_CHECKING:
    from ray_wsss.models.segmenter import SegmenterSpec

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores; torch's threads, which wait for one another, would waste them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # They don't share what they compile, lest one reads what another is writing.
    own = Path(tempfile.gettempdir()) / f"ray_wsss_inductor_{os.environ['PYTEST_XDIST_WORKER']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own))

# A slow or busy machine is no error: no example has a deadline by wall time.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

FIRST_SEED = 10_900_000
"""Scenes that neither the demo nor the tiny SAM's training draws."""
SCENES = 24

# The demo's recipe, small enough that a stage takes seconds.
SMALL_CHANGES = {
    "classifier.batch_size": 8,
    "classifier.max_iters": 4,
    "classifier.checkpoint_every": 2,
    "classifier.log_every": 2,
    "classifier.lr_warmup_iters": 0,
    "cpm.warmup_iters": 2,
    "label.scales": (1.0,),
    "label.batch_size": 5,
    "segmenter.batch_size": 8,
    "segmenter.max_iters": 2,
    "segmenter.checkpoint_every": 2,
    "segmenter.lr_warmup_iters": 0,
}


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    return override(PRESETS["demo"], SMALL_CHANGES)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def s3_server() -> Iterator[None]:
    """An S3 server of this machine, which clients here and in child processes find by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A process of its own: in a thread it would wait for clients' open connections when it is to end.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not _listens(port):
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "anyone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield
    server.kill()
    server.wait()


@pytest.fixture
def bucket(s3_server: None) -> Path:
    """An empty bucket."""
    root = parse_path(f"s3://bucket-{uuid4().hex}")
    filesystem_of(root).mkdir(str(root).partition("://")[2])
    return root


@pytest.fixture(scope="session")
def ray_cluster(s3_server: None) -> Iterator[None]:
    """One Ray for all tests; `ray_session` uses the one that is up."""
    import ray

    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    ray.init(
        address="local",
        num_cpus=4,  # logical: Ray Data wants some even where the machine has two
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def _write_source(folder: Path, count: int) -> tuple[Path, Path]:
    return write_scene_coco(folder, "scenes", range(FIRST_SEED, FIRST_SEED + count))


def _write_dataset(folder: Path, count: int) -> Path:
    source = read_coco(*_write_source(folder / "source", count))
    out = folder / "dataset"
    begin_ingest(out)
    finish_ingest(out, source, [IngestShard(out, len(source.class_names))(source.rows, 0)])
    return out


@pytest.fixture(scope="session")
def write_source() -> Callable[[Path, int], tuple[Path, Path]]:
    """Writes generated scenes as COCO: (folder, count) -> images, annotations."""
    return _write_source


@pytest.fixture(scope="session")
def write_dataset() -> Callable[[Path, int], Path]:
    """Writes generated scenes as a data set, without Ray: (folder, count) -> data set."""
    return _write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes of 96 x 96 pixels with masks."""
    return _write_dataset(tmp_path_factory.mktemp("scenes"), SCENES)


@pytest.fixture(scope="session")
def foreign_dataset(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images with other class names."""
    out = tmp_path_factory.mktemp("foreign") / "dataset"
    out.mkdir()
    (out / "shards").symlink_to(dataset / "shards")
    metadata = DatasetMetadata.load(dataset)
    names = tuple(f"foreign {name}" for name in metadata.class_names)
    replace(metadata, class_names=names).save(out)
    return out


@pytest.fixture(scope="session")
def classifier(dataset: Path, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was trained for four iterations, in this process."""
    from ray_wsss.cluster.stages.train_classifier import run_train_classifier
    from ray_wsss.config.resources import Cluster, Workers

    out = tmp_path_factory.mktemp("trained") / "classifier"
    workers = Workers(workers=0)
    run_train_classifier(small_recipe, dataset=dataset, out=out, workers=workers, cluster=Cluster())
    return out


@pytest.fixture(scope="session")
def labels(
    dataset: Path,
    classifier: Path,
    small_recipe: Recipe,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Pseudo labels of the data set, by one actor."""
    from ray_wsss.cluster.stages.label import run_label
    from ray_wsss.config.resources import Cluster, Resources

    out = tmp_path_factory.mktemp("labelled") / "labels"
    run_label(
        small_recipe,
        dataset=dataset,
        classifier=classifier,
        out=out,
        resources=Resources(),
        cluster=Cluster(),
    )
    return out


def _save_segmenter(spec: "SegmenterSpec", folder: Path) -> None:
    import torch

    from ray_wsss.models.segmenter import build_segmenter
    from ray_wsss.models.store import save_model

    torch.manual_seed(1)
    model = build_segmenter(spec).eval()
    # Untrained, it gives one class everywhere: level the classes on some scenes.
    scenes = np.stack([make_scene(seed, 64, 64).image for seed in range(4)])
    with torch.no_grad():
        mean = model(torch.from_numpy(scenes).permute(0, 3, 1, 2) / 255).mean(dim=(0, 2, 3))
        model.get_parameter("head.bias").sub_(mean)
    save_model(model, spec, folder)


@pytest.fixture(scope="session")
def save_segmenter() -> "Callable[[SegmenterSpec, Path], None]":
    """Saves an untrained segmenter that gives several classes: (spec, folder)."""
    return _save_segmenter


@pytest.fixture(scope="session")
def segmenter(dataset: Path, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained segmenter in a folder as train-segmenter leaves it."""
    from ray_wsss.models.segmenter import SegmenterSpec

    out = tmp_path_factory.mktemp("trained") / "segmenter"
    output = Output(out, "train-segmenter", {})
    output.begin()
    _save_segmenter(SegmenterSpec.of(small_recipe.segmenter, DatasetMetadata.load(dataset).class_names), out)
    output.finish()
    return out


@pytest.fixture(scope="session")
def genuine_data() -> Path:
    """The folder of genuine COCO and VOC images beside the project; it is no part of the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no genuine images at {folder}")
    return folder
