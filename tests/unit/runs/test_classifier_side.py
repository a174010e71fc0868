"""The long side at which a classifier sees images: known from its training, and a warning far above it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ray_wsss.config import LabelConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.errors import UserError
from ray_wsss.runs.classifier_side import (
    _warn_once,
    trained_side_px,
    warn_of_large_views,
    with_classifier_side,
)
from ray_wsss.runs.dependencies import settings_of
from ray_wsss.runs.manifest import Output

Train = Callable[[Recipe], Path]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """A folder with the manifest of a training; it needs no network here."""

    def folder(recipe: Recipe) -> Path:
        output = Output(tmp_path / "classifier", "train-classifier", settings_of(recipe, "classifier", "cpm"))
        output.begin()
        output.finish()
        return output.out

    return folder


@pytest.fixture(autouse=True)
def no_warning_yet():
    _warn_once.cache_clear()


def test_the_side_is_the_largest_of_training(train: Train, tmp_path: Path) -> None:
    classifier = train(override(Recipe(), {"classifier.augment.long_side_px": (100, 300)}))
    assert trained_side_px(classifier) == 300
    assert with_classifier_side(LabelConfig(), classifier).classifier_side_px == 300
    explicit = LabelConfig(classifier_side_px=64)
    assert with_classifier_side(explicit, classifier) == explicit
    known = settings_of(Recipe(label=with_classifier_side(LabelConfig(), classifier)), "label")
    assert known["label.classifier_side_px"] == 300
    assert trained_side_px(tmp_path) is None
    assert with_classifier_side(LabelConfig(), tmp_path) == LabelConfig()


def test_a_manifest_that_does_not_tell_gives_no_limit(tmp_path: Path) -> None:
    Output(tmp_path / "benchmark", "train-classifier", {"benchmark": 200}).begin()
    assert trained_side_px(tmp_path / "benchmark") is None
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not readable JSON"):
        with_classifier_side(LabelConfig(), tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_quiet(train: Train, caplog: pytest.LogCaptureFixture, preset: str) -> None:
    classifier = train(PRESETS[preset])
    warn_of_large_views(PRESETS[preset].label, classifier)
    warn_of_large_views(with_classifier_side(PRESETS[preset].label, classifier), classifier)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classifier_side_px": 768}, None),
        (
            {"classifier_side_px": 769},
            ["label.classifier_side_px is 769", "of 769 px, 1.5 times"],
        ),
        (
            {"classifier_side_px": 2000},
            ["label.classifier_side_px is 2000", "of 1024 px, 2 times", "(512 px)"],
        ),
        ({"classifier_side_px": 2000, "max_side_px": 600}, None),  # no image is that large
        ({"scales": (1.0, 3.0)}, ["label.scales has 3:", "long side of 1536 px, 3 times", "(512 px)"]),
        ({"scales": (1.0, 3.0), "classifier_side_px": 256}, None),
        ({"scales": (1.0, 3.0), "max_side_px": 256}, None),
        ({"scales": (1.0, 2.0)}, None),
    ],
)
def test_a_side_far_above_training_is_warned_of_once(
    train: Train, caplog: pytest.LogCaptureFixture, changes: dict, said: list[str] | None
) -> None:
    classifier = train(Recipe())
    config = replace(LabelConfig(scales=(1.0,)), **changes)
    for _ in range(2):  # such as label and evaluate in one run
        warn_of_large_views(config, classifier)
    assert [record.levelno for record in caplog.records] == ([logging.WARNING] if said else [])
    for words in said or ():
        assert words in caplog.text


def test_an_unknown_training_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_large_views(LabelConfig(classifier_side_px=9999, scales=(4.0,)), tmp_path)
    assert caplog.text == ""
