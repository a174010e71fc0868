"""Settings as TOML: written, read back, and refused by name."""

from pathlib import Path

import pytest

from ray_wsss.config.overrides import flatten, override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.settings_file import load_recipe, load_settings, save_settings
from ray_wsss.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_all_settings(name: str, tmp_path: Path) -> None:
    recipe = override(
        PRESETS[name],
        {
            "cpm.tau": 0.1 + 0.2,
            "classifier.lr": 1e-05,
            "sam.checkpoint": 'a "b" \\ c\x7f#ü',
            "label.flip": False,
        },
    )
    path = tmp_path / "all.toml"
    save_settings(path, name, flatten(recipe), ["of a test", ""])
    assert load_recipe(path) == recipe
    assert load_settings(path)[0] == name
    assert path.read_text().startswith(f'# of a test\n#\npreset = "{name}"\n\n[classifier]\n')


def test_a_few_settings_on_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "few.toml"
    path.write_text(
        'preset = "demo"\n[cpm]\ntau = 0.42\nscales = [1.0, 2.0]\n[classifier.augment]\nflip = false\n'
    )
    changes = {"cpm.tau": 0.42, "cpm.scales": (1.0, 2.0), "classifier.augment.flip": False}
    assert load_recipe(path) == override(PRESETS["demo"], changes)
    assert load_recipe(path, "coco") == override(PRESETS["coco"], changes)
    path.write_text("")
    assert load_recipe(path) == PRESETS["photos"]
    path.write_text("[classifier]\nmax_iters = 70")
    expected = {"classifier.max_iters": 70, "classifier.epochs": None}
    assert load_recipe(path) == override(PRESETS["photos"], expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[cpm]\ntua = 0.4", r"few.toml: unknown key cpm.tua: did you mean cpm.tau\?"),
        ("[cpn]\ntau = 0.4", r"few.toml: unknown key cpn.tau: did you mean cpm\?"),
        ("tau = 0.4", r"few.toml: unknown key tau"),
        ("[cpm]\ntau = 5", r"few.toml: cpm.tau is 5; expected a CAM value"),
        ("[cpm]\ntau = high", r"few.toml is not readable TOML"),
        ('preset = "vco"', r"few.toml: preset is vco; expected one of photos, voc, coco, demo"),
        ("cpm = 3", r"few.toml: key cpm can't be set: cpm has settings of its own"),
    ],
)
def test_what_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "few.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_recipe(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.toml can't be read: No such file"):
        load_recipe(tmp_path / "none.toml")
