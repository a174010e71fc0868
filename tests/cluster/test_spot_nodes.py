"""Spot nodes that are lost again and again cost little, and change nothing; a drained node costs nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from outputs import hashes

from ray_wsss.data.coco import read_coco
from ray_wsss.stages.ingest import IngestShard, begin_ingest, finish_ingest

pytestmark = pytest.mark.cluster

CHUNKS, IMAGES_PER_CHUNK = 26, 8


@pytest.fixture
def scenes(write_source: Callable[[Path, int], tuple[Path, Path]], tmp_path: Path) -> Path:
    """208 scenes in small shards, each of which is a chunk."""
    source = read_coco(*write_source(tmp_path / "source", CHUNKS * IMAGES_PER_CHUNK))
    out, size = tmp_path / "scenes", IMAGES_PER_CHUNK
    begin_ingest(out)
    ingest = IngestShard(out, len(source.class_names))
    shards = [ingest(source.rows[k * size : (k + 1) * size], k) for k in range(CHUNKS)]
    finish_ingest(out, source, shards)
    return out


def test_nodes_that_are_lost_again_and_again(scenes: Path, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(Path(__file__).with_name("spot_nodes.py"))]
    run = subprocess.run(
        [*command, str(scenes), str(classifier), str(out)], capture_output=True, text=True, timeout=3600
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    told = json.loads(run.stdout.splitlines()[-1])
    print(told)

    undisturbed = hashes(out / "here")
    assert len(undisturbed) == CHUNKS
    assert hashes(out / "lost") == undisturbed
    assert hashes(out / "drained") == undisturbed
    # A lost node costs the chunk at work, and at most one whose end the driver had not heard of.
    assert 0 < told["lost"]["twice"] <= 2 * IMAGES_PER_CHUNK * told["lost"]["nodes"]
    assert told["drained"] == {"nodes": 1, "twice": 0}
    weights = [(out / name / "model.safetensors").read_bytes() for name in ("trained", "trained_lost")]
    assert weights[0] == weights[1]
    # A lost node costs the steps since the last checkpoint, and at most those whose checkpoint it took along.
    assert told["trained_lost"]["nodes"] == 2
    assert told["trained_lost"]["twice"] <= 4 * 2
