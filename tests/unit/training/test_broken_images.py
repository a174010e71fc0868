"""Images that break after ingest: another takes their place, they are listed, and too many stop the run."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.testing import assert_close

from ray_wsss.config import AugmentConfig, Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.embeddings import EMBEDDING_SCHEMA
from ray_wsss.data.images import encode_mask, encode_segments
from ray_wsss.data.reader import ShardReader, shard_paths
from ray_wsss.data.schema import write_table_atomically
from ray_wsss.errors import TooManyFailedError, UserError
from ray_wsss.runs.broken_images import BrokenImages, gather_texts
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.crops import TrainingCrops, iterate
from ray_wsss.training.local_session import LocalSession
from ray_wsss.training.segmenter import train_segmenter
from ray_wsss.training.validation import Sample

SIDE = 64
COUNT = 14
AUGMENT = AugmentConfig(long_side_px=(56, 72), crop_px=64)
CHANGES = {
    "max_iters": 3,  # 12 of the 14 images: none is drawn twice
    "batch_size": 4,
    "checkpoint_every": 1,
    "log_every": 1,
    "loader_workers": 0,
    "augment.long_side_px": (56, 72),
    "augment.crop_px": 64,
}
RECIPE: Recipe = override(
    PRESETS["demo"],
    {f"{network}.{key}": value for network in ("classifier", "segmenter") for key, value in CHANGES.items()}
    | {"cpm.enabled": False, "classifier.feature_dim": 16, "segmenter.aspp_dim": 8},
)
CUT = "truncated JPEG"


def rewrite(dataset: Path, out: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A copy of a folder of shards, with changed rows, or without those for which there is None."""
    if (dataset / "metadata.json").exists():
        out.mkdir(exist_ok=True)
        shutil.copy(dataset / "metadata.json", out)
    for path in shard_paths(dataset):
        table = pq.read_table(path)
        rows = [row for row in map(change, table.to_pylist()) if row is not None]
        write_table_atomically(pa.Table.from_pylist(rows, schema=table.schema), out / "shards" / path.name)
    return out


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def break_images(dataset: Path, out: Path, image_ids: set[str]) -> Path:
    """A copy of a data set in which only the first half of some images' bytes is left."""

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"image": half(row["image"])} if row["image_id"] in image_ids else row

    return rewrite(dataset, out, cut)


def crops_of(dataset: Path, **views: Any) -> TrainingCrops:
    return TrainingCrops(dataset, list(range(COUNT)), num_classes=6, augment=AUGMENT, seed=0, **views)


def turns(dataset: Path) -> list[str]:
    """Image ids in the order in which a run of RECIPE draws them."""
    crops = crops_of(dataset)
    return crops.image_ids(row for batch in crops.batches(batch_size=4, start=0, stop=3) for _, row in batch)


def weights(session: LocalSession) -> dict[str, torch.Tensor]:
    folder = session.latest_checkpoint()
    assert folder is not None
    return torch.load(folder / "training.pt", weights_only=True)["model"]


def listed(out: Path) -> dict[str, str]:
    rows = pq.read_table(out / "errors.parquet").to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row["reason"] for row in rows}


def assert_same_crop(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in expected:
        if isinstance(expected[name], torch.Tensor):
            assert torch.equal(found[name], expected[name])
        else:
            assert found[name] == expected[name]


def test_another_image_takes_the_place_with_the_same_draw(scene_dataset, tmp_path):
    healthy = crops_of(scene_dataset)
    name = healthy.image_ids([5])[0]
    dataset = break_images(scene_dataset, tmp_path, {name})
    instead = []
    for draw in range(20):
        found = crops_of(dataset)[draw, 5]  # a process of its own for each, as it were
        noted, image_id, reason = found.pop("broken")
        assert (noted, image_id) == (draw, name)
        assert reason.startswith(CUT)
        instead.append(found["image_id"])
        assert_same_crop(found, healthy[draw, healthy.reader.index_of(found["image_id"])])
    assert name not in instead
    assert len(set(instead)) > 5  # no image is learned twice as often as others
    assert "broken" not in crops_of(dataset)[3, 4]


def spoil_labels(row: dict[str, Any], what: str) -> dict[str, Any] | None:
    spoiled = {
        "label cut": row["pseudo_label"][:40],
        "label of another size": encode_mask(np.zeros((SIDE, SIDE + 1), np.uint8)),
        "label of an unknown class": encode_mask(np.full((SIDE, SIDE), 7, np.uint8)),
    }
    return row | {"pseudo_label": spoiled[what]} if what in spoiled else None


KINDS = {
    "image cut": CUT,
    "image of noise": "not an image",
    "image class out of range": "IndexError",
    "orientation": "orientation is 9; expected",
    "no label": "labels has no row of this image",
    "label cut": "PNG",
    "label of another size": "the pseudo label is 65x64 pixels, its image 64x64",
    "label of an unknown class": "the pseudo label has 7; expected at most 6",
    "no segments": "segments has no row of this image",
    "segments cut": "PNG",
    "segments of another size": "the segment map is 64x60 pixels, its image 64x64",
    "no embedding": "has no embedding of this image",
    "embedding cut": "values of its embedding; expected 16|multiple of element size",
    "embedding of another size": "has the embedding of an image of 64x60 pixels",
}


@pytest.mark.parametrize("what", KINDS)
def test_every_kind_of_broken_image_is_noted_with_its_reason(scene_dataset, tmp_path, what):
    reader = ShardReader(scene_dataset)
    name = reader.image_ids[2]
    ids = reader.image_ids
    (tmp_path / "data").mkdir()

    def of_image(row: dict[str, Any]) -> dict[str, Any]:
        changed = {
            "image cut": {"image": half(row["image"])},
            "image of noise": {"image": bytes(range(200))},
            "image class out of range": {"image_labels": [6]},
            "orientation": {"orientation": 9},
        }
        return row | changed.get(what, {}) if row["image_id"] == name else row

    dataset = rewrite(scene_dataset, tmp_path / "data", of_image)
    mask, segments = np.ones((SIDE, SIDE), np.uint8), np.ones((SIDE, SIDE), np.int32)
    label_rows = [{"image_id": i, "pseudo_label": encode_mask(mask)} for i in ids]
    segment_rows = [{"image_id": i, "segment_map": encode_segments(segments)} for i in ids]
    values = np.ones((4, 2, 2), np.float16).tobytes()
    embedding_rows = [
        {"image_id": i, "height": SIDE, "width": SIDE, "shape": [4, 2, 2], "embedding": values} for i in ids
    ]
    if "label" in what:
        spoiled = spoil_labels(label_rows[2], what)
        label_rows = [*label_rows[:2], *([spoiled] if spoiled else []), *label_rows[3:]]
    if "segments" in what:
        cut = encode_segments(segments)[:50]
        small = encode_segments(segments[:60])
        segment_rows[2]["segment_map"] = cut if "cut" in what else small
        segment_rows = [row for row in segment_rows if "no " not in what or row["image_id"] != name]
    if "embedding" in what:
        embedding_rows[2] |= {"embedding": values[:-3]} if "cut" in what else {"height": 60}
        embedding_rows = [row for row in embedding_rows if "no " not in what or row["image_id"] != name]
    views = {"labels": label_rows, "segments": segment_rows, "embeddings": embedding_rows}
    for view, rows in views.items():
        schema = EMBEDDING_SCHEMA if view == "embeddings" else None
        write_table_atomically(pa.Table.from_pylist(rows, schema=schema), tmp_path / view / "part.parquet")
    crops = crops_of(dataset, **{view: tmp_path / view for view in views})
    found = crops[0, 2]
    assert found["broken"][1] == name
    assert any(part in found["broken"][2] for part in KINDS[what].split("|"))
    assert found["image_id"] != name
    assert "broken" not in crops[0, 3]


@pytest.fixture(scope="module")
def broken_set(scene_dataset, tmp_path_factory) -> tuple[Path, list[str], Path]:
    """A data set with two broken images, their ids, and a healthy one that holds in their rows, by other
    means, the images that replace them.
    """
    folder = tmp_path_factory.mktemp("broken")
    order = turns(scene_dataset)
    broken = [order[1], order[10]]  # in the first and in the last batch
    dataset = break_images(scene_dataset, folder / "dataset", set(broken))
    crops, reader = crops_of(dataset), ShardReader(scene_dataset)
    names = {
        image_id: crops[order.index(image_id), reader.index_of(image_id)]["image_id"] for image_id in broken
    }
    records = {name: reader.read(reader.index_of(instead)) for name, instead in names.items()}

    def replace(row: dict[str, Any]) -> dict[str, Any]:
        return records.get(row["image_id"], row) | {"image_id": row["image_id"]}

    return dataset, broken, rewrite(scene_dataset, folder / "reference", replace)


def labels_of(dataset: Path, out: Path) -> Path:
    """The ground truth of a data set as pseudo labels."""
    reader = ShardReader(dataset)
    rows = [reader.read(k, ["image_id", "mask"]) for k in range(len(reader))]
    table = [{"image_id": r["image_id"], "pseudo_label": r["mask"], "error": None} for r in rows]
    schema = pa.schema([("image_id", pa.string()), ("pseudo_label", pa.binary()), ("error", pa.string())])
    write_table_atomically(pa.Table.from_pylist(table, schema=schema), out / "part-00000.parquet")
    return out


@pytest.mark.parametrize("loaders", [0, 2])
def test_the_classifier_ends_as_with_the_other_images_in_the_data_set(broken_set, tmp_path, caplog, loaders):
    dataset, broken, reference = broken_set
    train_classifier(RECIPE, reference, LocalSession(tmp_path / "reference"))
    assert not caplog.records
    assert not (tmp_path / "reference" / "errors.parquet").exists()
    session = LocalSession(tmp_path / "run")
    train_classifier(override(RECIPE, {"classifier.loader_workers": loaders}), dataset, session)
    assert_close(weights(session), weights(LocalSession(tmp_path / "reference")), rtol=0, atol=0)
    reasons = listed(tmp_path / "run")
    assert list(reasons) == broken
    assert all(reason.startswith(CUT) for reason in reasons.values())
    told = [record.getMessage() for record in caplog.records]
    assert told[:2] == [f"{name} is left out: {reasons[name]}" for name in broken]
    assert told[2:] == [f"2 of 12 images were left out; {tmp_path / 'run' / 'errors.parquet'} says why"]


def test_the_segmenter_ends_as_with_the_other_images_in_the_data_set(broken_set, tmp_path):
    dataset, broken, reference = broken_set
    labels = labels_of(reference, tmp_path / "labels")
    trained = {}
    for name, data in (("reference", reference), ("run", dataset)):
        session = LocalSession(tmp_path / name)
        train_segmenter(RECIPE, data, labels, session)
        trained[name] = weights(session)
    assert_close(trained["run"], trained["reference"], rtol=0, atol=0)
    assert list(listed(tmp_path / "run")) == broken


class PowerCut(Exception):
    pass


class Dying(LocalSession):
    """Dies after the first checkpoint."""

    def report(self, metrics: dict[str, float], checkpoint: Path | None, *, best: bool = False) -> None:
        super().report(metrics, checkpoint, best=best)
        raise PowerCut


def test_a_resumed_run_lists_them_all_once(broken_set, tmp_path):
    dataset, broken, _ = broken_set
    undisturbed = LocalSession(tmp_path / "undisturbed")
    train_classifier(RECIPE, dataset, undisturbed)
    with pytest.raises(PowerCut):
        train_classifier(RECIPE, dataset, Dying(tmp_path / "cut"))
    assert list(listed(tmp_path / "cut")) == broken[:1]
    (tmp_path / "cut" / "errors.parquet").unlink()
    resumed = LocalSession(tmp_path / "cut")
    train_classifier(RECIPE, dataset, resumed)
    assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert listed(tmp_path / "cut") == listed(tmp_path / "undisturbed")
    folder = resumed.latest_checkpoint()
    assert folder is not None
    progress = json.loads((folder / "progress.json").read_text())
    assert list(progress["broken"]) == broken
    assert [entry.get("errors") for entry in progress["history"]] == [1, 1, 2]


def test_too_many_broken_images_stop_the_run_unless_the_user_says_so(scene_dataset, tmp_path):
    broken = set(turns(scene_dataset)[:7])  # of 12 that are drawn
    dataset = break_images(scene_dataset, tmp_path / "dataset", broken)
    told = r"7 of 12 images failed; .* at most 0.5 \(--max-error-share\); the first one: truncated JPEG"
    with pytest.raises(TooManyFailedError, match=rf"{told}.*errors.parquet lists all"):
        train_classifier(RECIPE, dataset, LocalSession(tmp_path / "run"))
    assert set(listed(tmp_path / "run")) == broken
    train_classifier(RECIPE, dataset, LocalSession(tmp_path / "run"), limit=ErrorLimit(max_error_share=0.6))
    assert set(listed(tmp_path / "run")) == broken


def test_a_data_set_of_broken_images_is_a_user_error(scene_dataset, tmp_path):
    dataset = break_images(scene_dataset, tmp_path / "dataset", set(ShardReader(scene_dataset).image_ids))
    with pytest.raises(UserError) as error:
        train_classifier(RECIPE, dataset, LocalSession(tmp_path / "run"))
    assert str(error.value).startswith(f"all 14 images of {dataset} can't be used for training; expected")


def test_of_a_user_error_in_a_loader_process_only_the_message_is_kept():
    def loader() -> Iterator[Any]:
        yield 1
        try:
            raise UserError("part-0 is damaged (no: such); write it again")
        except UserError:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
        wrapped.reraise()  # as torch does, with the traceback in the message

    found = iterate(loader())  # type: ignore[arg-type]
    assert next(found) == 1
    with pytest.raises(UserError) as error:
        next(found)
    assert str(error.value) == "part-0 is damaged (no: such); write it again"
    assert "Traceback" in str(error.value.__cause__)


def test_a_failure_that_no_image_is_to_blame_for_ends_the_run(scene_dataset, monkeypatch):
    crops = crops_of(scene_dataset)
    for error in (MemoryError(), UserError("the shard is damaged"), OSError(5, "Input/output error")):

        def fail(*arguments: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("ray_wsss.training.crops.decode_image", fail)
        with pytest.raises(type(error)):
            crops[0, 0]


def test_pictures_of_training_leave_broken_images_out(scene_dataset, tmp_path):
    sample = Sample(scene_dataset, 4)
    first = [record["image_id"] for record in sample.first(4)]
    dataset = break_images(scene_dataset, tmp_path, {first[0]})
    assert [record["image_id"] for record in Sample(dataset, 4).first(4)] == first[1:]


class ThreadWorker:
    """One of several workers that are threads."""

    device = torch.device("cpu")

    def __init__(self, rank: int, out: Path, values: dict[int, torch.Tensor], barrier: threading.Barrier):
        self.rank, self.world_size, self.out = rank, barrier.parties, out
        self.values, self.barrier = values, barrier

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        self.values[self.rank] = value
        self.barrier.wait(timeout=30)
        mean = torch.stack([self.values[rank] for rank in range(self.world_size)]).mean(0)
        self.barrier.wait(timeout=30)
        return mean


def on_workers(count: int, out: Path, work: Callable[[ThreadWorker], Any]) -> list[Any]:
    barrier, values, results = threading.Barrier(count), {}, {}

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorker(rank, out, values, barrier))
        except UserError as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(count)]


def test_workers_get_each_others_texts(tmp_path):
    texts = ["", "Ünicode, 3 € \n", "b" * 70_000]
    found = on_workers(3, tmp_path, lambda worker: gather_texts(worker, texts[worker.rank]))
    assert found == [texts] * 3
    assert on_workers(2, tmp_path, lambda worker: gather_texts(worker, "")) == [["", ""]] * 2


def test_workers_agree_on_what_is_broken_in_the_order_of_its_turn(tmp_path):
    notes = [[(7, "d", "cut"), None, (9, "b", "cut")], [(2, "c", "noise"), (8, "d", "cut")]]

    def work(worker: ThreadWorker) -> tuple[list[str], dict[str, float]]:
        broken = BrokenImages({"a": "before"}, worker, ErrorLimit())
        broken.note(notes[worker.rank])
        return list(broken.reasons), broken.share(100, at_end=False) | {"n": len(broken.reasons)}

    results = on_workers(2, tmp_path, work)
    assert results == [(["a"], {"errors": 4.0, "n": 4})] * 2
    assert listed(tmp_path) == {"a": "before", "c": "noise", "d": "cut", "b": "cut"}


def test_workers_stop_together_once_a_thousand_images_were_drawn(tmp_path):
    def work(worker: ThreadWorker) -> None:
        broken = BrokenImages({}, worker, ErrorLimit())
        broken.note([(k, str(k), "cut") for k in range(600) if k % 2 == worker.rank])
        broken.share(900, at_end=False)
        broken.share(1000, at_end=False)

    first, second = on_workers(2, tmp_path, work)
    assert isinstance(first, TooManyFailedError)
    assert str(first) == str(second)
    assert str(first).startswith("600 of 1,000 images failed; expected a share of at most 0.5")
