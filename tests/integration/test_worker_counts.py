"""1, 2 and 4 data-parallel workers see the same batches and lose the same, step by step.

Without Ray, in processes that meet through gloo; `tests/cluster/test_train.py` has two workers on Ray. All
start from a network that has learned something: CPM divides class maps by their maxima, and in a fresh one
these are near 0, so that rounding errors grow tenfold a step, on any number of workers.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from narrow_clip import BACKBONE, write_clip
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.extract_features import run_extract_features
from ray_wsss.config import FeaturesConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import write_table_atomically
from ray_wsss.models import backbone as backbone_module
from ray_wsss.models.data_parallel import match_one_worker
from ray_wsss.models.store import load_classifier
from ray_wsss.training.checkpoints import Progress, save_checkpoint
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.local_session import LocalSession
from ray_wsss.training.optimiser import build_optimiser
from ray_wsss.training.segmenter import train_segmenter

STEPS = 50
CHANGES = {
    f"{network}.{key}": value
    for network in ("classifier", "segmenter")
    for key, value in {
        "max_iters": STEPS,
        "log_every": 1,
        "optimiser": "sgd",
        "lr": 2e-4,
    }.items()
} | {"cpm.warmup_iters": 0, "segmenter.augment.crop_px": 64}


class GlooSession(LocalSession):
    """One of several processes."""

    def __init__(self, out: Path, rank: int, world_size: int) -> None:
        super().__init__(out)
        self.rank, self.world_size = rank, world_size
        self.losses: list[dict[str, float]] = []

    def prepare(self, model: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return model
        match_one_worker(model, self.rank, self.world_size, on_gpu=False)
        return DistributedDataParallel(model)

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def report(self, metrics: dict[str, float], checkpoint: Path | None, *, best: bool = False) -> None:
        self.losses.append({name: value for name, value in metrics.items() if name.startswith("loss_")})


def work(
    rank: int,
    world_size: int,
    out: Path,
    recipe: Recipe,
    dataset: Path,
    labels: Path | None,
    views: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    torch.set_num_threads(1)
    if recipe.classifier.text_head is not None:
        backbone_module._SMALL["clip"] = BACKBONE
    meet = f"file://{out}/meet_{world_size}_{labels is None}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    session = GlooSession(out, rank, world_size)
    if labels is None:
        train_classifier(recipe, dataset, session, **views)
    else:
        train_segmenter(recipe, dataset, labels, session)
    if rank == 0:
        (out / f"losses_{world_size}.json").write_text(json.dumps(session.losses))
    dist.destroy_process_group()


def losses(world_size: int, *arguments: object) -> list[dict[str, float]]:
    spawn(work, (world_size, *arguments), nprocs=world_size)
    out = arguments[0]
    assert isinstance(out, Path)
    return json.loads((out / f"losses_{world_size}.json").read_text())


@pytest.fixture(scope="module")
def recipe(small_recipe: Recipe) -> Recipe:
    return override(small_recipe, CHANGES)


@pytest.fixture(scope="module")
def trained(recipe: Recipe, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned to classify the scenes."""
    out = tmp_path_factory.mktemp("trained")
    changes = {"optimiser": "adamw", "lr": 3e-3, "max_iters": 200, "lr_warmup_iters": 20}
    plain = override(recipe, {f"classifier.{k}": v for k, v in changes.items()} | {"cpm.enabled": False})
    train_classifier(plain, dataset, LocalSession(out))
    checkpoint = LocalSession(out).latest_checkpoint()
    assert checkpoint is not None
    return checkpoint


def start_from(trained: Path, recipe: Recipe, out: Path) -> None:
    """Let a run in ``out`` begin with the weights in ``trained``."""
    model, spec = load_classifier(trained)
    folder = out / "checkpoints" / "checkpoint_00000000"
    folder.mkdir(parents=True)
    save_checkpoint(folder, model, spec, build_optimiser(model, recipe.classifier), Progress())


TRANSFORMER = {
    "classifier.backbone": "test_vit",
    "classifier.output_stride": 16,
    "classifier.layers": (-2, -1),
    "classifier.layer_decay": 0.8,
    "classifier.freeze_stages": 1,
}


@pytest.mark.parametrize("changes", [{}, TRANSFORMER], ids=["convolutional", "transformer"])
def test_passes_of_several_workers_with_frozen_norms_make_the_step_of_one(
    recipe: Recipe, dataset: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Two steps of two workers in two passes each, with CPM on; one worker in one pass is the reference."""
    few = override(recipe, {"classifier.max_iters": 2, "classifier.freeze_norm": True} | changes)
    (expected, expected_after) = losses(1, tmp_path, few, dataset, None)
    (first, after) = losses(2, tmp_path, override(few, {"classifier.accumulate": 2}), dataset, None)
    assert first.keys() == {"loss_cls", "loss_cpm"}
    assert first == pytest.approx(expected, abs=1e-4)
    assert after == pytest.approx(expected_after, abs=1e-3)


def test_two_workers_train_from_a_text_head_as_one_does(
    recipe: Recipe, dataset: Path, tmp_path: Path
) -> None:
    """Every class map begins with its text, so CPM has CAMs at once."""
    (tmp_path / "clip").mkdir()
    write_clip(tmp_path / "clip")
    changes = {
        "classifier.backbone": "clip",
        "classifier.output_stride": 16,
        "classifier.text_head": str(tmp_path / "clip"),
        "classifier.max_iters": 2,
    }
    few = override(recipe, changes)
    one, two = (losses(count, tmp_path, few, dataset, None) for count in (1, 2))
    assert one[0].keys() == {"loss_cls", "loss_cpm"}
    assert one[0] != one[1]
    assert two[0] == pytest.approx(one[0], abs=1e-4)
    assert two[1] == pytest.approx(one[1], abs=1e-3)


def test_two_workers_train_on_stored_features_as_one_does(
    recipe: Recipe, dataset: Path, tmp_path: Path
) -> None:
    """With CPM on SAM's embeddings; the workers' shares of the crops differ in their padding."""
    changes = {
        "classifier.freeze_stages": "all",
        "classifier.max_iters": 3,
        "classifier.lr": 0.05,
        "cpm.view": "image",
    }
    few = override(recipe, changes)
    here: Any = {"resources": Resources(actors=0), "cluster": Cluster()}
    views = {"features": tmp_path / "features", "embeddings": tmp_path / "embeddings"}
    settings = FeaturesConfig(sides_px=(96,), flip=True)
    run_extract_features(few, features=settings, dataset=dataset, out=views["features"], **here)
    run_embed(few, dataset=dataset, out=views["embeddings"], **here)
    one, two = (losses(count, tmp_path, few, dataset, None, views) for count in (1, 2))
    assert one[0].keys() == {"loss_cls", "loss_cpm"}
    assert one[0] != one[2]
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_several_workers_replace_and_list_the_same_broken_images(
    recipe: Recipe, dataset: Path, tmp_path: Path
) -> None:
    """A broken image in the share of each worker; one worker is the reference."""
    few = override(recipe, {"classifier.max_iters": 2, "cpm.enabled": False, "classifier.freeze_norm": True})
    order = drawn(few, dataset)
    spoiled = {order[1], order[7], order[12]}  # 8 images to a batch, 4 to each of two workers
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    (path,) = (broken / "shards").iterdir()
    table = pq.read_table(path)
    rows = [row | ({"image": b"rot"} if row["image_id"] in spoiled else {}) for row in table.to_pylist()]
    write_table_atomically(pa.Table.from_pylist(rows, schema=table.schema), path)
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one = losses(1, tmp_path / "1", few, broken, None)
    two = losses(2, tmp_path / "2", few, broken, None)
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    listed = [pq.read_table(tmp_path / k / "errors.parquet").to_pylist() for k in ("1", "2")]
    assert listed[0] == listed[1]
    assert [row["image_id"] for row in listed[0]] == [order[k] for k in (1, 7, 12)]


def drawn(recipe: Recipe, dataset: Path) -> list[str]:
    """Image ids of the classifier's first two batches."""
    config = recipe.classifier
    rows = list(range(len(ShardReader(dataset))))
    crops = TrainingCrops(dataset, rows, num_classes=6, augment=config.augment, seed=config.seed)
    batches = crops.batches(batch_size=config.batch_size, start=0, stop=2)
    return crops.image_ids(row for batch in batches for _, row in batch)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["classifier", "segmenter"])
def test_losses_do_not_depend_on_the_number_of_workers(
    stage: str,
    recipe: Recipe,
    dataset: Path,
    labels: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    """With batch norm that trains, and dropout in the segmenter; with small steps, since large ones enlarge
    rounding errors, on one worker as on several.
    """
    assert not recipe.classifier.freeze_norm
    if stage == "classifier":
        start_from(trained, recipe, tmp_path)
    arguments = (tmp_path, recipe, dataset, labels if stage == "segmenter" else None)
    one, two, four = (losses(world_size, *arguments) for world_size in (1, 2, 4))
    assert len(one) == STEPS
    names = {"loss_cls", "loss_cpm"} if stage == "classifier" else {"loss_seg"}
    for step, (expected, *others) in enumerate(zip(one, two, four)):
        assert expected.keys() == names
        for other in others:
            assert other == pytest.approx(expected, abs=1e-4), step
