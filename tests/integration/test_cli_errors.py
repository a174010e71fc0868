"""Errors a user will make: exit status 1 and one clear sentence on stderr, never a traceback."""

import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_wsss.cli import main
from ray_wsss.models.sam.build import tiny_checkpoint

SMALL = ["--preset", "demo", "--workers", "0"]
TRAIN = [*SMALL, "--classifier.batch-size", "8", "--classifier.max-iters", "2"]
Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that must be refused in one sentence with all of ``words``."""

    def run(argv: list[object], *words: str) -> str:
        status = main([str(word) for word in argv])
        told = capsys.readouterr().err
        assert status == 1, told
        assert told.startswith("ray-wsss: ")
        assert told.count("\n") == 1, told
        assert "Traceback" not in told
        assert "unexpected" not in told
        assert not [word for word in words if word not in told], told
        return told

    return run


@pytest.fixture
def source(write_source: Callable[[Path, int], tuple[Path, Path]], tmp_path: Path) -> tuple[Path, Path]:
    return write_source(tmp_path / "source", 3)


@pytest.mark.parametrize(
    "argv",
    [
        ["ingest", "coco", "--images", "nowhere", "--annotations", "nowhere.json"],
        ["ingest", "voc", "--root", "nowhere"],
        ["ingest", "folder", "--root", "nowhere"],
        ["ingest", "csv", "--table", "nowhere.csv", "--images", "."],
        ["train-classifier", "--dataset", "nowhere", *SMALL],
        ["label", "--dataset", "nowhere", "--classifier", "nowhere", "--preset", "demo"],
        ["train-segmenter", "--dataset", "nowhere", "--labels", "nowhere", *SMALL],
        ["predict", "--segmenter", "nowhere", "--images", "nowhere"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_wrong_path(argv: list[str], refuse: Refuse, tmp_path: Path) -> None:
    refuse([*argv, "--out", tmp_path / "out"], "nowhere")
    assert not (tmp_path / "out").exists()


def test_wrong_path_to_evaluate(refuse: Refuse, dataset: Path) -> None:
    refuse(["evaluate", "--dataset", "nowhere", "--labels", "nowhere"], "nowhere", "not a finished data set")
    for given in ("--classifier", "--labels", "--segmenter"):
        refuse(["evaluate", "--dataset", dataset, given, "nowhere"], "nowhere")
    refuse(["evaluate", "--dataset", dataset], "nothing to evaluate")


@pytest.mark.usefixtures("ray_cluster")
def test_ingest_errors(refuse: Refuse, source: tuple[Path, Path], tmp_path: Path) -> None:
    images, annotations = source
    coco = ["ingest", "coco", "--images", images, "--annotations"]
    refuse([*coco, images, "--out", tmp_path / "a"], str(images))
    table = tmp_path / "not_json.json"
    table.write_text("image,label\n")
    refuse([*coco, table, "--out", tmp_path / "b"], str(table))
    next(images.glob("*.jpg")).write_bytes(b"")
    refuse([*coco, annotations, "--out", tmp_path / "c", "--max-errors", "0"], "1 images failed", "at most 0")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("irreplaceable")
    refuse([*coco, annotations, "--out", tmp_path / "d"], "thesis.tex")
    assert (tmp_path / "d" / "thesis.tex").read_text() == "irreplaceable"


def test_out_is_a_data_set(refuse: Refuse, source: tuple[Path, Path], dataset: Path) -> None:
    images, annotations = source
    refuse(
        ["ingest", "coco", "--images", images, "--annotations", annotations, "--out", dataset],
        "is already a data set",
    )
    refuse(
        ["train-classifier", "--dataset", dataset, "--out", dataset, *TRAIN], "is not an output of ray-wsss"
    )


def test_out_holds_something_else(refuse: Refuse, dataset: Path, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = ["train-classifier", "--dataset", dataset, *TRAIN, "--out"]
    refuse([*command, tmp_path / "file"], "is a file")
    refuse([*command, tmp_path], "expected a new or empty folder")
    segmenter = ["train-segmenter", "--dataset", dataset, "--labels", classifier, *SMALL, "--out"]
    refuse([*segmenter, tmp_path / "out"], "holds the output of train-classifier")
    assert (classifier / "model.safetensors").exists()


def test_other_settings_in_the_same_folder(refuse: Refuse, dataset: Path, tmp_path: Path) -> None:
    command = ["train-classifier", "--dataset", dataset, "--out", tmp_path / "out", *TRAIN]
    assert main([str(word) for word in command]) == 0
    refuse([*command, "--cpm.tau", "0.4"], "cpm.tau", "0.5", "0.4", "--overwrite")


def test_no_data_set(refuse: Refuse, classifier: Path, tmp_path: Path) -> None:
    refuse(
        ["train-classifier", "--dataset", tmp_path, "--out", tmp_path / "out", *TRAIN],
        str(tmp_path),
        "not a finished data set",
    )
    refuse(["evaluate", "--dataset", tmp_path, "--classifier", classifier], "not a finished data set")


def test_no_classifier(refuse: Refuse, dataset: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, dataset):
        command = ["label", "--dataset", dataset, "--classifier", folder, "--preset", "demo"]
        refuse([*command, "--out", tmp_path / "out"], str(folder), "train-classifier")


def test_predict_inputs(refuse: Refuse, segmenter: Path, classifier: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    (images / "notes.txt").write_text("no picture")
    predict = ["predict", "--preset", "demo", "--images", images, "--segmenter"]
    refuse([*predict, classifier, "--out", out], str(classifier), "expected that of train-segmenter")
    refuse([*predict, segmenter, "--out", out], str(images), "has no images")
    refuse([*predict, segmenter, "--out", images / "masks"], "taken for images")
    refuse([*predict, segmenter, "--out", segmenter, "--overwrite"], f"--segmenter {segmenter} lies in")
    refuse([*predict, segmenter, "--out", out, "--predict.scales", "0"], "predict.scales is (0.0,)")
    refuse(["predict", "--segmenter", segmenter, "--images", images / "notes.txt", "--out", out], "notes.txt")
    assert not out.exists()
    assert (segmenter / "model.safetensors").exists()


def test_no_class_in_common(refuse: Refuse, foreign_dataset: Path, classifier: Path, tmp_path: Path) -> None:
    command = ["label", "--dataset", foreign_dataset, "--classifier", classifier, "--preset", "demo"]
    refuse([*command, "--out", tmp_path / "out"], "none in common")
    refuse(["evaluate", "--dataset", foreign_dataset, "--classifier", classifier], "none in common")


def test_data_set_of_one_image(
    refuse: Refuse, write_dataset: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    one = write_dataset(tmp_path, 1)
    refuse(
        ["train-classifier", "--dataset", one, "--out", tmp_path / "out", *TRAIN],
        "1 image",
        "classifier.batch_size",
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cpm.tau", "5"], ["cpm.tau is 5", "[0, 1]"]),
        (["--preset", "nope"], ["--preset is nope", "photos, voc, coco, demo"]),
        (["--classifier.lr", "-1"], ["classifier.lr is -1"]),
        (["--workers", "-1"], ["workers is -1"]),
        (["--workers", "3"], ["classifier.batch_size is 8", "3 workers"]),
        (["--cpus-per-worker", "0"], ["cpus_per_worker is 0"]),
        (["--sam.checkpoint", "nowhere.pth"], ["sam.checkpoint", "nowhere.pth"]),
        (["--classifier.backbone", "resnet_smal", "--workers", "0"], ["resnet_smal"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_wrong_setting(
    flags: list[str], words: list[str], refuse: Refuse, dataset: Path, tmp_path: Path
) -> None:
    command = ["train-classifier", "--dataset", dataset, "--out", tmp_path / "out"]
    refuse([*command, *([] if "--preset" in flags else TRAIN), *flags], *words)


def test_unknown_flag(capsys: pytest.CaptureFixture[str], dataset: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train-classifier", "--dataset", str(dataset), "--out", "x", "--clasifier.lr", "1"])
    assert exit_.value.code == 2
    assert "--clasifier.lr" in capsys.readouterr().err


def test_sam_checkpoint_of_another_size(refuse: Refuse, dataset: Path, tmp_path: Path) -> None:
    command = ["train-classifier", "--dataset", dataset, "--out", tmp_path / "out", *TRAIN]
    refuse(
        [*command, "--cpm.warmup-iters", "0", "--sam.name", "vit_b", "--sam.checkpoint", tiny_checkpoint()],
        "does not fit SAM vit_b",
    )


def test_sam_offline(refuse: Refuse, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("RAY_WSSS_CACHE", str(tmp_path / "cache"))
    command = ["train-classifier", "--dataset", dataset, "--out", tmp_path / "out", *TRAIN]
    command += ["--sam.name", "vit_b", "--cpm.warmup-iters", "0"]
    refuse(command, "sam_vit_b_01ec64.pth", str(tmp_path / "cache"))


MUCH_MEMORY = ["--memory-gib-per-actor", 4000]


@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    """What is found out where Ray runs."""

    def test_more_than_the_cluster_has(
        self, refuse: Refuse, dataset: Path, classifier: Path, tmp_path: Path
    ) -> None:
        label = ["label", "--dataset", dataset, "--classifier", classifier, "--preset", "demo"]
        for flags in (
            ["--sam-actors", 4],
            ["--num-gpus-per-actor", 1],
            ["--num-cpus-per-actor", 8],
            MUCH_MEMORY,
        ):
            out = tmp_path / f"labels_{flags[0]}"
            refuse([*label, *flags, "--out", out], "are asked for", "has 4 CPUs, 0 GPUs and", "on 1 node")
        train = ["train-classifier", "--dataset", dataset, *TRAIN]
        for flags in (["--workers", 8], ["--workers", 2, "--gpus-per-worker", 1]):
            out = tmp_path / f"trained_{len(flags)}"
            refuse([*train, *flags, "--out", out], "training with", "has 4 CPUs, 0 GPUs and")

    def test_corrupt_classifier(
        self, refuse: Refuse, dataset: Path, classifier: Path, tmp_path: Path
    ) -> None:
        broken = shutil.copytree(classifier, tmp_path / "broken")
        (broken / "model.safetensors").write_bytes(b"nothing")
        command = ["label", "--dataset", dataset, "--classifier", broken, "--preset", "demo"]
        refuse([*command, "--out", tmp_path / "out"], "model.safetensors", "can't be read")

    def test_corrupt_data_set(self, refuse: Refuse, dataset: Path, classifier: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(dataset, tmp_path / "broken")
        (shard,) = (broken / "shards").glob("*.parquet")
        shard.write_bytes(shard.read_bytes()[:-100])
        command = ["label", "--dataset", broken, "--classifier", classifier, "--preset", "demo"]
        refuse([*command, "--out", tmp_path / "out"], shard.name)

    def test_error_in_a_training_worker(self, refuse: Refuse, dataset: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(b"nothing")
        command = ["train-classifier", "--dataset", dataset, "--out", tmp_path / "out", *TRAIN]
        flags = ["--workers", 2, "--cpm.warmup-iters", "0", "--sam.checkpoint", broken]
        refuse([*command, *flags], str(broken), "is not a file of weights")
