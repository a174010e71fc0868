"""A data set that is labelled in slices: training and evaluation read their outputs as that of the whole."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_wsss.cluster.stages.evaluate import run_evaluate
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.train_segmenter import run_train_segmenter
from ray_wsss.commands.job import refuse_relative_paths
from ray_wsss.commands.registry import parse
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import STAGE_HERE, TRAINING_HERE
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.store import save_model
from ray_wsss.runs.manifest import Output, file_hash, read_manifest
from ray_wsss.runs.read_chunks import Chunk, Slice

SMALL = {
    "label.scales": (1.0,),
    "segmenter.max_iters": 2,
    "segmenter.batch_size": 4,
    "segmenter.checkpoint_every": 1,
    "segmenter.aspp_dim": 8,
    "segmenter.augment.long_side_px": (56, 72),
    "segmenter.augment.crop_px": 64,
}
RECIPE: Recipe = override(PRESETS["demo"], SMALL)


@pytest.fixture(scope="module")
def classifier(
    scene_dataset: Path,
    make_classifier: Callable[..., Classifier],
    classifier_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An untrained classifier of the scenes' classes."""
    from ray_wsss.models.classifier import ClassifierSpec

    names = DatasetMetadata.load(scene_dataset).class_names
    spec = ClassifierSpec(class_names=names, backbone="resnet_small", output_stride=8, feature_dim=16)
    output = Output(tmp_path_factory.mktemp("trained") / "classifier", "train-classifier", {})
    output.begin()
    save_model(make_classifier(names), spec, output.out)
    output.finish()
    return output.out


def label(scenes: Path, classifier: Path, out: Path, slice_: str | None = None) -> Path:
    part = Slice.parse(slice_) if slice_ is not None else None
    run_label(RECIPE, dataset=scenes, classifier=classifier, out=out, part=part, **STAGE_HERE)
    return out


@pytest.fixture(scope="module")
def whole(scene_dataset: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label(scene_dataset, classifier, tmp_path_factory.mktemp("labelled") / "whole")


@pytest.fixture(scope="module")
def slices(scene_dataset: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("in_slices")
    return [label(scene_dataset, classifier, folder / f"{k}", f"{k}/2") for k in (1, 2)]


def train(scenes: Path, labels: Path | list[Path], out: Path) -> bytes:
    run_train_segmenter(RECIPE, dataset=scenes, labels=labels, out=out, **TRAINING_HERE)
    return (out / "model.safetensors").read_bytes()


def test_slices_have_each_chunk_once() -> None:
    chunks = [Chunk(index, "", 0, 1) for index in range(11)]
    for count in range(1, 12):
        parts = [Slice(number, count).of(chunks) for number in range(1, count + 1)]
        assert [chunk for part in parts for chunk in part] == chunks
        assert {len(part) for part in parts} <= {11 // count, 11 // count + 1}
    with pytest.raises(UserError, match=r"--slice is 1/12 of 11 chunks of 64 images; expected at most 11"):
        Slice(1, 12).of(chunks)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "1.5/2", "1/-2", "a/b"])
def test_what_is_no_slice_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--slice is .*; expected NUMBER/COUNT"):
        Slice.parse(text)


def test_the_labels_of_slices_are_those_of_the_whole(
    scene_dataset: Path, classifier: Path, whole: Path, slices: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    together, alone = ShardReader(slices), ShardReader(whole)
    assert together.image_ids == alone.image_ids == ShardReader(scene_dataset).image_ids
    assert all(together.read(k) == alone.read(k) for k in range(len(alone)))
    with pytest.raises(UserError, match=r"holds a run with another slice \(1/2, now 2/2\)"):
        label(scene_dataset, classifier, slices[0], "2/2")
    caplog.set_level(logging.INFO)
    label(scene_dataset, classifier, slices[0], "1/2")
    assert f"{slices[0]} is already finished" in caplog.messages


def test_training_on_slices_gives_the_network_of_the_whole(
    scene_dataset: Path, whole: Path, slices: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = train(scene_dataset, whole, tmp_path / "whole")
    noted = read_manifest(tmp_path / "whole")
    assert noted is not None
    # As earlier versions noted it, so that their runs resume.
    assert noted["depends_on"]["labels"] == file_hash(whole / "manifest.json")
    assert not caplog.messages

    assert train(scene_dataset, slices, tmp_path / "slices") == expected
    caplog.set_level(logging.INFO)
    train(scene_dataset, slices[::-1], tmp_path / "slices")
    assert f"{tmp_path / 'slices'} is already finished" in caplog.messages
    with pytest.raises(UserError, match=r"holds a run with another labels"):
        train(scene_dataset, slices[:1], tmp_path / "slices")


def test_images_that_no_slice_has_are_counted(
    scene_dataset: Path, slices: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(scene_dataset, slices[:1], tmp_path / "half")
    missing = len(ShardReader(scene_dataset)) - len(ShardReader(slices[0]))
    assert f"{missing} images are left out, because {slices[0]} has no label of them" in caplog.messages


def test_folders_that_do_not_go_together_are_refused(
    scene_dataset: Path, whole: Path, slices: list[Path], foreign_labels: Path, tmp_path: Path
) -> None:
    both = (
        rf"{slices[0]} and {whole} both have labels of \d images, the first is .*; expected each image in one"
    )
    with pytest.raises(UserError, match=both):
        train(scene_dataset, [slices[0], whole], tmp_path / "out")
    with pytest.raises(UserError, match=rf"{foreign_labels} has labels for none of the images of"):
        train(scene_dataset, [*slices, foreign_labels], tmp_path / "out")
    unfinished = tmp_path / "unfinished"
    Output(unfinished, "label", {}).begin()
    with pytest.raises(UserError, match=rf"{unfinished} is unfinished"):
        train(scene_dataset, [slices[0], unfinished], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def foreign_labels(slices: list[Path], scene_dataset: Path, classifier: Path, tmp_path: Path) -> Path:
    """Labels of images with other ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = tmp_path / "foreign"
    shutil.copytree(slices[0], out)
    for shard in (out / "shards").iterdir():
        table = pq.read_table(shard)
        others = pa.array([f"other {name}" for name in table["image_id"].to_pylist()])
        pq.write_table(table.set_column(0, table.schema.field(0), others), shard)
    return out


def test_slices_that_were_labelled_differently_are_told(
    scene_dataset: Path,
    classifier: Path,
    slices: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = override(RECIPE, {"label.tau": 0.9})
    out = tmp_path / "second"
    run_label(other, dataset=scene_dataset, classifier=classifier, out=out, part=Slice(2, 2), **STAGE_HERE)
    train(scene_dataset, [slices[0], out], tmp_path / "out")
    tau = RECIPE.label.tau
    assert f"{slices[0]} and {out} were labelled with another label.tau: {tau} and 0.9" in caplog.messages


def test_slices_are_measured_as_one(
    scene_dataset: Path, whole: Path, slices: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def measure(labels: Path | list[Path]) -> Any:
        inputs: Any = {"dataset": scene_dataset, "classifier": None, "segmenter": None}
        return run_evaluate(RECIPE, **inputs, labels=labels, **STAGE_HERE)

    assert measure(slices) == measure(whole)
    assert not caplog.messages
    measure(slices[1])
    missing, total = len(ShardReader(slices[0])), len(ShardReader(scene_dataset))
    assert caplog.messages == [
        f"{missing} of {total} images of {scene_dataset} have no label in {slices[1]}, "
        "and count as background"
    ]


def test_flags_take_several_folders() -> None:
    def labels_of(*words: str) -> Any:
        command = parse(["train-segmenter", "--dataset", "d", "--out", "o", *words], "demo", PRESETS["demo"])
        return command.labels

    assert labels_of("--labels", "a", "b", "--labels", "c") == ((Path("a"), Path("b")), (Path("c"),))
    with pytest.raises(UserError, match=r"train-segmenter needs --labels"):
        labels_of()


def test_a_job_refuses_each_folder_that_only_its_submitter_has(tmp_path: Path) -> None:
    paths = ["--dataset", str(tmp_path), "--out", str(tmp_path / "out")]
    words = [*paths, "--labels", str(tmp_path), "near/labels"]
    command = parse(["train-segmenter", *words], "demo", PRESETS["demo"])
    with pytest.raises(UserError, match=r"--labels is near/labels, and a job runs in a folder of its own"):
        refuse_relative_paths(command, tmp_path)
    (tmp_path / "near" / "labels").mkdir(parents=True)
    refuse_relative_paths(command, tmp_path)
    with pytest.raises(UserError, match=r"--labels is near/labels"):
        refuse_relative_paths(command, None)
    written = parse(["train-segmenter", *words, "--out", "near"], "demo", PRESETS["demo"])
    with pytest.raises(UserError, match=r"--out is near, and a job runs in a folder of its own"):
        refuse_relative_paths(written, tmp_path)
