"""Training: an interrupted run ends where an undisturbed one does, and a NaN stops it with a name."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recorded_sessions import Interrupted, Recorder, final, values
from tensorboardX.proto import event_pb2

from ray_wsss.config import ClassifierConfig, Recipe, SegmenterConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.reader import ShardReader, shard_paths
from ray_wsss.data.schema import write_table_atomically
from ray_wsss.errors import UserError
from ray_wsss.models.store import load_classifier, load_segmenter
from ray_wsss.stages.evaluate import CamEvaluator, add_up
from ray_wsss.training.checkpoints import MODEL_FILES, export_model
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.local_session import LocalSession
from ray_wsss.training.loop import share_of_batch
from ray_wsss.training.optimiser import learning_rate
from ray_wsss.training.segmenter import train_segmenter

RECIPE: Recipe = override(
    PRESETS["demo"],
    {
        "classifier.max_iters": 5,
        "classifier.batch_size": 4,
        "classifier.checkpoint_every": 2,
        "classifier.log_every": 1,
        "classifier.feature_dim": 16,
        "classifier.augment.long_side_px": (56, 72),
        "classifier.augment.crop_px": 64,
        "cpm.warmup_iters": 2,
        "cpm.min_distance_px": 4,
        "segmenter.max_iters": 5,
        "segmenter.batch_size": 4,
        "segmenter.checkpoint_every": 2,
        "segmenter.log_every": 1,
        "segmenter.aspp_dim": 8,
        "segmenter.head_lr_factor": 10.0,
        "segmenter.augment.long_side_px": (56, 72),
        "segmenter.augment.crop_px": 64,
    },
)
Train = Callable[[Recipe, LocalSession], None]


@pytest.fixture(scope="module")
def labels_dir(scene_dataset, tmp_path_factory) -> Path:
    """The ground truth of all images but the first as pseudo labels."""
    folder = tmp_path_factory.mktemp("pseudo_labels")
    reader = ShardReader(scene_dataset)
    rows = [reader.read(k, ["image_id", "mask"]) for k in range(len(reader))]
    table = pa.table(
        {
            "image_id": [row["image_id"] for row in rows],
            "pseudo_label": pa.array([None, *[row["mask"] for row in rows[1:]]], pa.binary()),
            "error": pa.array(["broken", *[None] * (len(rows) - 1)], pa.string()),
        }
    )
    write_table_atomically(table, folder / "part-00000.parquet")
    return folder


@pytest.fixture(scope="module", params=["classifier", "segmenter"])
def train(request, scene_dataset, labels_dir) -> Train:
    if request.param == "classifier":
        return lambda recipe, session: train_classifier(recipe, scene_dataset, session)
    return lambda recipe, session: train_segmenter(recipe, scene_dataset, labels_dir, session)


@pytest.fixture(scope="module", params=["classifier", "segmenter"])
def train_on(request, scene_dataset, labels_dir) -> Callable[[Recipe, LocalSession, Path], None]:
    """Trains with a data set for validation."""
    if request.param == "classifier":
        return lambda recipe, session, data: train_classifier(recipe, scene_dataset, session, validation=data)
    return lambda recipe, session, data: train_segmenter(
        recipe, scene_dataset, labels_dir, session, validation=data
    )


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory) -> Recorder:
    session = Recorder(tmp_path_factory.mktemp("undisturbed"))
    train(RECIPE, session)
    return session


def test_checkpoints_and_reports(undisturbed):
    assert [m["iteration"] for m in undisturbed.metrics] == [1, 2, 3, 4, 5]
    kept = sorted(path.name for path in undisturbed.folder.iterdir())
    assert kept == ["checkpoint_00000004", "checkpoint_00000005"]


@pytest.mark.parametrize("die_at", [2, 3])
def test_a_resumed_run_ends_bit_identical(train, undisturbed, tmp_path, die_at):
    with pytest.raises(Interrupted):
        train(RECIPE, Recorder(tmp_path, die_at=die_at))
    session = Recorder(tmp_path)
    torch.manual_seed(123)  # what another process would have drawn by then
    train(RECIPE, session)
    assert values(session.metrics) == values(undisturbed.metrics)[2:]
    ours, theirs = final(session), final(undisturbed)
    assert ours.pop("name") == theirs.pop("name")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [1, "all"])
def test_a_transformer_resumes_bit_identical(scene_dataset, tmp_path, frozen):
    """With CPM, its learning rate by block, and the CAMs of two layers measured."""
    changes = {
        "classifier.backbone": "test_vit",
        "classifier.output_stride": 16,
        "classifier.layers": (-2, -1),
        "classifier.layer_decay": 0.8,
        "classifier.freeze_stages": frozen,
        "classifier.validate_every": 3,
        "classifier.validate_images": 2,
    }
    recipe = override(RECIPE, changes)
    sessions = [Recorder(tmp_path / "undisturbed"), Recorder(tmp_path / "cut", die_at=3)]
    train_classifier(recipe, scene_dataset, sessions[0], validation=scene_dataset)
    with pytest.raises(Interrupted):
        train_classifier(recipe, scene_dataset, sessions[1], validation=scene_dataset)
    resumed = Recorder(tmp_path / "cut")
    train_classifier(recipe, scene_dataset, resumed, validation=scene_dataset)
    assert values(resumed.metrics) == values(sessions[0].metrics)[3:]  # validation kept the third iteration
    ours, theirs = final(resumed), final(sessions[0])
    assert ours.pop("name") == theirs.pop("name")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    model, spec = load_classifier(resumed.folder / "checkpoint_00000005")
    assert spec.layers == (-2, -1)
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    first, _ = load_classifier(sessions[0].folder / "checkpoint_00000004")
    moved = [k for k, v in backbone.items() if not torch.equal(v, first.state_dict()[k])]
    assert bool(moved) == (frozen == 1)


def test_a_checkpoint_of_version_0_1_resumes_bit_identical(train, tmp_path):
    """That version had one group of parameters and no factor for the head."""
    recipe = override(RECIPE, {"segmenter.head_lr_factor": 1.0})
    undisturbed = Recorder(tmp_path / "undisturbed")
    train(recipe, undisturbed)
    with pytest.raises(Interrupted):
        train(recipe, Recorder(tmp_path / "cut", die_at=3))
    folder = LocalSession(tmp_path / "cut").latest_checkpoint()
    assert folder is not None
    state = torch.load(folder / "training.pt", weights_only=True)
    backbone, head = state["optimiser"]["param_groups"]
    del backbone["factor"]
    state["optimiser"]["param_groups"] = [{**backbone, "params": backbone["params"] + head["params"]}]
    torch.save(state, folder / "training.pt")
    resumed = Recorder(tmp_path / "cut")
    train(recipe, resumed)
    assert values(resumed.metrics) == values(undisturbed.metrics)[2:]
    ours, theirs = final(resumed), final(undisturbed)
    assert ours.pop("name") == theirs.pop("name")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_head_learns_at_its_own_rate(train, tmp_path):
    """One step of SGD from the same weights and batch, at factors 1 and 10."""
    plain = {"optimiser": "sgd", "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.0, "lr_warmup_iters": 0}
    weights = {}
    for factor in (1.0, 10.0, 1e-9):  # the last one hardly moves the head
        changes = plain | {"max_iters": 1, "head_lr_factor": factor}
        names = ("classifier", "segmenter")
        run = Recorder(tmp_path / str(factor))
        train(override(RECIPE, {f"{name}.{k}": v for name in names for k, v in changes.items()}), run)
        weights[factor] = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    moved = 0
    for name, start in weights[1e-9].items():
        one, ten = weights[1.0][name], weights[10.0][name]
        if name.startswith("backbone."):
            assert torch.equal(one, ten)
        else:
            torch.testing.assert_close(ten - start, 10 * (one - start), rtol=1e-2, atol=1e-5)
            moved += bool((one != start).any())
    assert moved


def test_a_finished_run_does_nothing_more(train, undisturbed):
    session = Recorder(undisturbed.out)
    train(RECIPE, session)
    assert session.metrics == []


def test_the_seed_matters(train, undisturbed, tmp_path):
    session = Recorder(tmp_path)
    train(override(RECIPE, {"classifier.seed": 1, "segmenter.seed": 1}), session)
    assert values(session.metrics) != values(undisturbed.metrics)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(train, scene_dataset, tmp_path):
    session = Recorder(tmp_path, spoil_at=3)
    with pytest.raises(
        FloatingPointError, match=r"(cls, cpm are|seg is) not finite at iteration 4 for \d+, \d+, \d+, \d+"
    ) as error:
        train(RECIPE, session)
    named = str(error.value).split(" for ")[1].split(", ")
    assert set(named) <= set(ShardReader(scene_dataset).image_ids)
    state = final(session)
    assert state["name"] == "checkpoint_00000002"
    assert all(value.isfinite().all() for value in state["model"].values())


def test_several_passes_make_the_same_step(train, tmp_path):
    """With the batch norm of the network frozen; the segmenter's head has one that trains."""
    runs = []
    for k in (1, 2):
        changes = {
            f"{name}.{key}": value
            for name in ("classifier", "segmenter")
            for key, value in {
                "accumulate": k,
                "freeze_norm": True,
                "optimiser": "sgd",
                "lr": 0.1,
                "max_iters": 2,
            }.items()
        }
        runs.append(Recorder(tmp_path / str(k)))
        train(override(RECIPE, changes | {"cpm.enabled": False}), runs[-1])
    losses = [values(run.metrics) for run in runs]
    if "loss_cls" in losses[0][0]:
        assert losses[1][1] == pytest.approx(losses[0][1], abs=1e-5)
        torch.testing.assert_close(*[final(run)["model"] for run in runs], atol=1e-5, rtol=1e-4)
    else:
        assert losses[1][0] == pytest.approx(losses[0][0], rel=0.2)


def test_several_passes_with_cpm_keep_norms_frozen_and_make_the_same_step(scene_dataset, tmp_path):
    """CPM puts the model into eval mode in every pass; the passes after it must still see frozen norms."""
    runs = []
    for k in (1, 2):
        changes = {
            "accumulate": k,
            "freeze_norm": True,
            "optimiser": "sgd",
            "lr": 0.1,
            "lr_warmup_iters": 0,
            "max_iters": 1,
        }
        runs.append(Recorder(tmp_path / str(k)))
        recipe = override(RECIPE, {f"classifier.{key}": value for key, value in changes.items()})
        train_classifier(override(recipe, {"cpm.warmup_iters": 0}), scene_dataset, runs[-1])
    assert runs[0].metrics[0]["loss_cpm"] > 0
    assert values(runs[1].metrics)[0] == pytest.approx(values(runs[0].metrics)[0], abs=1e-5)
    one, two = (final(run)["model"] for run in runs)
    running = [name for name in two if "running_" in name]
    assert running
    for name in running:  # as initialised
        assert torch.equal(two[name], torch.full_like(two[name], float("var" in name))), name
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)


def test_validation_is_reported_and_the_best_network_kept(train_on, scene_dataset, tmp_path):
    changes = {
        f"{name}.{key}": value
        for name in ("classifier", "segmenter")
        for key, value in {"validate_every": 2, "validate_images": 9}.items()
    }
    session = Recorder(tmp_path)
    train_on(override(RECIPE, changes), session, scene_dataset)
    scores = {int(m["iteration"]): m["val_miou"] for m in session.metrics if "val_miou" in m}
    assert list(scores) == [2, 4, 5]
    assert all(0 < score < 1 for score in scores.values())
    best = json.loads((tmp_path / "best" / "progress.json").read_text())
    assert best["iteration"] == max(scores, key=lambda iteration: scores[iteration])
    assert best["best"] == max(scores.values())
    assert {path.name for path in (tmp_path / "best").iterdir()} == set(MODEL_FILES)
    tags = board_tags(tmp_path / "tensorboard")
    assert {"validation/miou", "speed/seconds_per_step", "lr", "pictures"} < set(tags)
    assert tags.count("validation/miou") == 3 == tags.count("pictures")


def board_tags(folder: Path) -> list[str]:
    """Tags of all values in TensorBoard's files: length, checksum, event, checksum, and again."""
    event_type: Any = vars(event_pb2)["Event"]
    tags = []
    for path in folder.iterdir():
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_type.FromString(content[at + 12 : at + 12 + length])
            tags += [value.tag for value in event.summary.value]
            at += 16 + length
    return tags


@pytest.mark.parametrize(("iterations", "threshold"), [(1, 0.3), (3, 0.5)], ids=["without CPM", "with CPM"])
def test_validation_agrees_with_evaluate(scene_dataset, tmp_path, iterations, threshold):
    """At the fixed threshold, which depends on whether CPM has begun, and at the best one."""
    session = Recorder(tmp_path)
    changes = {"classifier.max_iters": iterations}
    train_classifier(override(RECIPE, changes), scene_dataset, session, validation=scene_dataset)
    checkpoint = session.latest_checkpoint()
    assert checkpoint is not None
    config = replace(RECIPE.label, scales=(1.0,), flip=False)
    table = pa.concat_tables(pq.read_table(path) for path in shard_paths(scene_dataset))
    totals = add_up(CamEvaluator.load(checkpoint, config, threshold)(table).to_pylist())
    counts, _ = totals["cam"]
    mious = {t: counts.matrix(t).miou() for t in counts.thresholds}
    assert session.metrics[-1]["val_miou"] == pytest.approx(mious[threshold])
    assert session.metrics[-1]["val_miou_best_threshold"] == pytest.approx(max(mious.values()))


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, "all"])
def test_a_compiled_transformer_computes_the_same(scene_dataset, tmp_path, frozen):
    changes = {
        "classifier.backbone": "test_vit",
        "classifier.output_stride": 16,
        "classifier.freeze_stages": frozen,
    }
    sessions = {compiled: Recorder(tmp_path / str(compiled)) for compiled in (False, True)}
    for compiled, session in sessions.items():
        recipe = override(RECIPE, changes | {"classifier.compile": compiled})
        train_classifier(recipe, scene_dataset, session)
    ours, theirs = values(sessions[True].metrics), values(sessions[False].metrics)
    assert ours[:2] == [pytest.approx(entry, abs=1e-4 if frozen == 0 else 0.02) for entry in theirs[:2]]


@pytest.mark.slow
def test_a_compiled_network_computes_the_same(train, undisturbed, tmp_path):
    session = Recorder(tmp_path)
    train(override(RECIPE, {"classifier.compile": True, "segmenter.compile": True}), session)
    ours, theirs = values(session.metrics), values(undisturbed.metrics)
    assert ours[:2] == [pytest.approx(entry, abs=1e-4) for entry in theirs[:2]]
    assert final(session)["model"].keys() == final(undisturbed)["model"].keys()


def test_cpm_starts_after_its_warm_up_and_teaches(scene_dataset, tmp_path):
    runs = {}
    for name, changes in {"on": {}, "off": {"cpm.enabled": False}, "late": {"cpm.warmup_iters": 5}}.items():
        runs[name] = Recorder(tmp_path / name)
        train_classifier(override(RECIPE, changes), scene_dataset, runs[name])
    assert ["loss_cpm" in m for m in runs["on"].metrics] == [False, False, True, True, True]
    assert not any("loss_cpm" in m for name in ("off", "late") for m in runs[name].metrics)
    on, off = values(runs["on"].metrics), values(runs["off"].metrics)
    assert on[:2] == off[:2]
    assert on[3]["loss_cls"] != off[3]["loss_cls"]  # the third step's CPM has changed the weights
    assert values(runs["late"].metrics) == off


def test_frozen_batch_norm_stays_frozen(scene_dataset, tmp_path):
    """CPM puts the model into eval mode and back each step: that must not wake batch norm up."""
    session = Recorder(tmp_path)
    recipe = override(RECIPE, {"classifier.freeze_norm": True, "classifier.freeze_stages": 1})
    train_classifier(recipe, scene_dataset, session)
    state = final(session)["model"]
    means = {key: value for key, value in state.items() if key.endswith("running_mean")}
    assert means
    assert not any(value.any() for value in means.values())  # as initialised
    weight = state["backbone.network.bn1.weight"]
    assert torch.equal(weight, torch.ones_like(weight))


def test_exported_models_load(undisturbed, tmp_path):
    folder = undisturbed.latest_checkpoint()
    assert folder is not None
    export_model(folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors", "progress.json"}
    classifier = '"classifier"' in (tmp_path / "model.json").read_text()
    model, spec = load_classifier(tmp_path) if classifier else load_segmenter(tmp_path)
    assert len(spec.class_names) == 6
    for name, value in final(undisturbed)["model"].items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_learning_rate_ramps_up_and_falls_like_torchs(power):
    config = ClassifierConfig(lr=0.1, max_iters=20, poly_power=power, lr_warmup_iters=4)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    poly = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=20, power=power)
    for iteration in range(20):
        ramp = min(1, (iteration + 1) / 4)
        assert learning_rate(config, iteration) == pytest.approx(ramp * poly.get_last_lr()[0])
        optimiser.step()
        poly.step()
    assert learning_rate(replace(config, lr_warmup_iters=0), 0) == 0.1


def test_the_optimiser_gets_the_scheduled_rate(undisturbed):
    config = RECIPE.classifier
    assert config.lr == RECIPE.segmenter.lr
    expected = [learning_rate(config, iteration) for iteration in range(5)]
    assert [m["lr"] for m in undisturbed.metrics] == expected
    assert final(undisturbed)["optimiser"]["param_groups"][0]["lr"] == expected[-1]


def test_a_batch_that_cannot_be_divided_is_a_user_error():
    config = SegmenterConfig(batch_size=8)
    assert share_of_batch(config, 4, "segmenter") == 2
    with pytest.raises(UserError, match=r"segmenter.batch_size is 8.*multiple of 3 \(3 workers\)"):
        share_of_batch(config, 3, "segmenter")


def test_too_few_images_are_a_user_error(scene_dataset, labels_dir, tmp_path):
    large = override(RECIPE, {"classifier.batch_size": 15, "segmenter.batch_size": 14})
    with pytest.raises(UserError, match=r"14 images with known labels; expected at least one batch of 15"):
        train_classifier(large, scene_dataset, LocalSession(tmp_path))
    with pytest.raises(UserError, match=r"13 labelled images in common; .* one batch of 14"):
        train_segmenter(large, scene_dataset, labels_dir, LocalSession(tmp_path))
    one = override(RECIPE, {"segmenter.batch_size": 1})
    with pytest.raises(UserError, match=r"is 1 with segmenter\.accumulate 1; expected at least 2"):
        train_segmenter(one, scene_dataset, labels_dir, LocalSession(tmp_path))


def test_a_half_written_checkpoint_is_not_resumed_from(undisturbed, tmp_path):
    source = undisturbed.latest_checkpoint()
    assert source is not None
    session = LocalSession(tmp_path)
    assert session.latest_checkpoint() is None
    folder = tmp_path / "checkpoints"
    (folder / ".checkpoint_00000009").mkdir(parents=True)  # left by a crash while copying
    assert session.latest_checkpoint() is None
    for iteration in (9, 10, 8_000_000):
        session.report({"iteration": float(iteration)}, source)
    assert session.latest_checkpoint() == folder / "checkpoint_08000000"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint_00000010", "checkpoint_08000000"]
