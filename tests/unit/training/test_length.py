"""Epochs as iterations: the arithmetic, and that each section has its own."""

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import write_table_atomically
from ray_wsss.training.classifier import count_trainable, train_classifier
from ray_wsss.training.length import describe_length, iterations_of, resolve_epochs
from ray_wsss.training.local_session import LocalSession


@pytest.mark.parametrize(
    ("epochs", "images", "batch_size", "iterations"),
    [
        (40, 10_582, 8, 52_910),
        (5, 200, 8, 125),
        (1, 14, 4, 4),  # 3.5
        (0.07, 100, 1, 7),  # 7.000000000000001 in floating point
        (1e-6, 100, 8, 1),
        (0, 100, 8, 0),
    ],
)
def test_iterations_of_epochs(epochs: float, images: int, batch_size: int, iterations: int):
    assert iterations_of(epochs, images, batch_size) == iterations


def test_epochs_decide_the_iterations_of_their_network():
    changes = {"classifier.epochs": 5.0, "cpm.warmup_epochs": 0.5, "segmenter.epochs": 3.0}
    recipe = override(Recipe(), changes)
    classifier = resolve_epochs(recipe, "classifier", 200)
    assert (classifier.classifier.max_iters, classifier.cpm.warmup_iters) == (125, 13)
    assert classifier.segmenter == recipe.segmenter
    assert classifier.classifier == replace(recipe.classifier, max_iters=125)
    segmenter = resolve_epochs(recipe, "segmenter", 100)
    assert segmenter.segmenter.max_iters == 38
    assert (segmenter.classifier, segmenter.cpm) == (recipe.classifier, recipe.cpm)
    assert resolve_epochs(classifier, "classifier", 200) == classifier


def test_epochs_of_few_images_are_stretched_with_their_warm_up():
    changes = {"classifier.epochs": 12.0, "cpm.warmup_epochs": 6.0, "segmenter.epochs": 2.0}
    recipe = override(Recipe(), changes | {"classifier.min_iters": 100, "segmenter.min_iters": 20})
    few = resolve_epochs(recipe, "classifier", 24)  # 36 iterations without a minimum
    assert (few.classifier.max_iters, few.cpm.warmup_iters) == (100, 50)
    assert resolve_epochs(few, "classifier", 24) == few
    many = resolve_epochs(recipe, "classifier", 80)
    assert (many.classifier.max_iters, many.cpm.warmup_iters) == (120, 60)
    assert resolve_epochs(recipe, "segmenter", 24).segmenter.max_iters == 20
    in_iterations = override(recipe, {"classifier.epochs": None, "classifier.max_iters": 7})
    assert resolve_epochs(in_iterations, "classifier", 24).classifier.max_iters == 7


def test_without_epochs_nothing_changes():
    for network in ("classifier", "segmenter"):
        assert resolve_epochs(Recipe(), network, 200) == Recipe()


def test_the_length_in_words():
    told = describe_length("classifier", 52_880, 8, 10_582)
    assert told == "classifier: 52,880 iterations of 8 images, 40.0 epochs of 10,582 images"
    assert describe_length("segmenter", 52_880, 8, 200).endswith("2,115.2 epochs of 200 images")


@pytest.mark.parametrize(("warmup", "warnings"), [(2, 1), (1, 0)])
def test_a_training_says_its_length_and_that_cpm_never_starts(
    scene_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, warmup: int, warnings: int
):
    changes = {"classifier.max_iters": 2, "classifier.batch_size": 7, "cpm.warmup_iters": warmup}
    recipe = override(PRESETS["demo"], changes | {"classifier.feature_dim": 8})
    with caplog.at_level(logging.INFO):
        train_classifier(recipe, scene_dataset, LocalSession(tmp_path))
    assert "classifier: 2 iterations of 7 images, 1.0 epochs of 14 images" in caplog.messages
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.split(",")[0] for message in warned] == ["cpm.warmup_iters is 2"] * warnings


def test_images_without_embeddings_are_not_counted_if_cpm_needs_them(scene_dataset: Path, tmp_path: Path):
    failed = ShardReader(scene_dataset).image_ids[:3]
    write_table_atomically(pa.table({"image_id": failed}), tmp_path / "errors.parquet")
    recipe = override(PRESETS["demo"], {"classifier.batch_size": 4, "cpm.view": "image"})
    assert count_trainable(recipe, scene_dataset, tmp_path) == 11
    assert count_trainable(override(recipe, {"cpm.view": "crop"}), scene_dataset, tmp_path) == 14
    assert count_trainable(override(recipe, {"cpm.enabled": False}), scene_dataset, tmp_path) == 14
