"""``--config FILE.toml``: below the flags, above the preset, for every command with settings."""

from pathlib import Path

import pytest

from ray_wsss.cli import _defaults, main
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS

FILE = 'preset = "demo"\n[classifier]\nlr = 0.007\n[cpm]\ntau = 0.42\n[label]\ntau = 0.6\n'
CHANGES = {"classifier.lr": 0.007, "cpm.tau": 0.42, "label.tau": 0.6}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "best.toml"
    path.write_text(FILE)
    return path


def test_the_file_names_the_preset_and_a_flag_wins(file: Path) -> None:
    assert _defaults(["label", "--config", str(file)]) == ("demo", override(PRESETS["demo"], CHANGES))
    assert _defaults(["label", f"--config={file}"])[0] == "demo"
    flags = ["label", "--preset", "voc", "--config", str(file)]
    assert _defaults(flags) == ("voc", override(PRESETS["voc"], CHANGES))
    assert _defaults(["label", "--preset", "coco", *flags[1:]])[0] == "voc"  # the last counts
    assert _defaults(["label"]) == ("photos", PRESETS["photos"])
    for flag in (["--classifier.max-iters", "9"], ["--classifier.max_iters=9"]):
        in_iterations = override(PRESETS["photos"], {"classifier.epochs": None})
        assert _defaults(["train-classifier", *flag]) == ("photos", in_iterations)


def test_a_space_is_below_the_file_and_its_fixed_settings_are_defaults(file: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.py"
    keys = '"cpm.tau": tune.uniform(0.3, 0.8), "classifier.validate_every": 50'
    space.write_text(
        f'from ray import tune\nSPACE = {{{keys}}}\nMETRIC, MODE, PRESET = "val_miou", "max", "coco"\n'
    )
    name, recipe = _defaults(["sweep", "--space", str(space)])
    assert (name, recipe) == ("coco", override(PRESETS["coco"], {"classifier.validate_every": 50}))
    name, recipe = _defaults(["sweep", "--space", str(space), "--config", str(file)])
    changes = CHANGES | {"classifier.validate_every": 50}
    assert (name, recipe) == ("demo", override(PRESETS["demo"], changes))


COMMANDS = {
    "train-classifier": ["--dataset", "d", "--out", "o"],
    "embed": ["--dataset", "d", "--out", "o"],
    "segment-everything": ["--dataset", "d", "--out", "o"],
    "label": ["--dataset", "d", "--classifier", "c", "--out", "o"],
    "train-segmenter": ["--dataset", "d", "--labels", "l", "--out", "o"],
    "evaluate": ["--dataset", "d"],
    "predict": ["--segmenter", "s", "--images", "i", "--out", "o"],
    "demo": [],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_unknown_key(
    name: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("[cpm]\ntua = 0.4\n")
    assert main([name, *COMMANDS[name], "--config", str(file)]) == 1
    assert "best.toml: unknown key cpm.tua: did you mean cpm.tau?" in capsys.readouterr().err


def test_training_takes_the_files_settings(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        'preset = "demo"\n[classifier]\nbatch_size = 8\nmax_iters = 3\nlr = 0.004\n[cpm]\nwarmup_iters = 2\n'
    )
    command = [
        "train-classifier",
        "--dataset",
        str(dataset),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "0",
    ]
    assert main([*command, "--config", str(path), "--classifier.max-iters", "1"]) == 0
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert '"classifier.lr": 0.004' in manifest
    assert '"classifier.max_iters": 1,' in manifest
    assert '"cpm.warmup_iters": 2' in manifest
