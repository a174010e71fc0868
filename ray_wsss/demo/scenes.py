"""The demo's data sets: generated scenes, read as COCO."""

from pathlib import Path

from ray_wsss.data.coco import read_coco
from ray_wsss.data.scene_coco import write_scene_coco
from ray_wsss.stages.ingest import ingest_here

TRAIN_SCENES = 400
HELD_OUT_SCENES = 150
# Seeds of scenes from here on belong neither to the tiny SAM's training scenes (below 2**20) nor to the
# scenes on which the demo's settings were chosen.
FIRST_SEED = 10_000_000
_SCENES_PER_SEED = 10_000


def make_scenes(out: Path, seed: int, train: int = TRAIN_SCENES, held_out: int = HELD_OUT_SCENES) -> None:
    """Make the data sets ``out/train`` and ``out/held_out``; no two values of ``seed`` share a scene."""
    make_training_scenes(out, seed, train)
    make_held_out_scenes(out, seed, train, held_out)


def make_training_scenes(out: Path, seed: int, count: int) -> None:
    """Make the data set ``out/train``, if it is not there."""
    _make(out, "train", seed, range(count))


def make_held_out_scenes(out: Path, seed: int, train: int, count: int) -> None:
    """Make the data set ``out/held_out``, if it is not there: the scenes after the ``train`` first ones."""
    _make(out, "held_out", seed, range(train, train + count))


def _make(out: Path, name: str, seed: int, numbers: range) -> None:
    if (out / name / "metadata.json").exists():
        return
    first = FIRST_SEED + seed * _SCENES_PER_SEED
    seeds = range(first + numbers.start, first + numbers.stop)
    source = read_coco(*write_scene_coco(out / "coco", name, seeds))
    ingest_here(source, out=out / name, max_errors=0)
