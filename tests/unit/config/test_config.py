"""Settings: overriding, flattening, limits, presets, documentation."""

import ast
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args

import pytest

import ray_wsss.config as config_module
from ray_wsss.config import AugmentConfig, CpmConfig, Recipe, SamConfig, SegmentsConfig
from ray_wsss.config.overrides import choose, flatten, override, without_other_lengths
from ray_wsss.config.presets import DEFAULT_PRESET, PRESETS, PresetName
from ray_wsss.config.promptable import MODELS
from ray_wsss.errors import UserError
from ray_wsss.training.length import resolve_epochs


def test_override_changes_one_key_and_no_other():
    recipe = override(Recipe(), {"cpm.tau": 0.42, "classifier.augment.crop_px": 64, "sam.name": "tiny"})
    before, after = flatten(Recipe()), flatten(recipe)
    changed = {key: after[key] for key in before if before[key] != after[key]}
    assert changed == {"cpm.tau": 0.42, "classifier.augment.crop_px": 64, "sam.name": "tiny"}
    assert override(CpmConfig(), {"tau": 0.42}) == recipe.cpm


def test_lists_become_tuples():
    assert override(Recipe(), {"cpm.scales": [1.0]}).cpm.scales == (1.0,)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("cpm.tua", r"unknown key cpm.tua: did you mean cpm.tau\?"),
        ("cmp.tau", r"unknown key cmp.tau: did you mean cpm\?"),
        ("classifier.augment.crop", r"did you mean classifier.augment.crop_px\?"),
        ("sam.zzz", "known are sam.name, sam.checkpoint"),
        ("cpm", "cpm has settings of its own"),
        ("cpm.tau.x", "cpm.tau has none"),
    ],
)
def test_unknown_keys(key, message):
    with pytest.raises(UserError, match=message):
        override(Recipe(), {key: 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cpm.tau", 5, r"^cpm.tau is 5; expected a CAM value in \[0, 1\]"),
        ("cpm.tau", float("nan"), r"^cpm.tau is nan"),
        ("cpm.tau", "high", r"^cpm.tau is high; expected a CAM value"),
        ("label.tau", -0.1, r"^label.tau is -0.1"),
        (
            "label.tile_px",
            60,
            r"^label.tile_px is 60; expected a multiple of 4 from 64 to 1024 \(label.max_side",
        ),
        ("label.tile_px", 130, r"^label.tile_px is 130; expected a multiple of 4"),
        ("label.tile_px", 2048, r"^label.tile_px is 2048; expected a multiple of 4"),
        ("label.tile_overlap", 32, r"^label.tile_overlap is 32; expected None without label.tile_px"),
        (
            "predict.tile_px",
            2048,
            r"^predict.tile_px is 2048; .* 64 to 1024 \(predict.max_side_px\)",
        ),
        ("predict.tile_overlap", 32, r"^predict.tile_overlap is 32; expected None without predict.tile_px"),
        ("cpm.scales", (), r"^cpm.scales is \(\)"),
        ("cpm.scales", (1.0, 5.0), r"^cpm.scales"),
        ("cpm.min_distance_px", 0, r"^cpm.min_distance_px is 0"),
        ("label.mask_threshold", float("inf"), r"^label.mask_threshold is inf; expected a finite logit"),
        ("cpm.warmup_iters", -1, r"^cpm.warmup_iters is -1"),
        ("cpm.confidence", "iuo", r"^cpm.confidence is iuo; expected one of logit, stability, iou"),
        ("label.keep_global_max", "yes", r"expected one of always, if_empty, never"),
        ("sam.name", "vit_x", r"^sam.name is vit_x; expected one of auto, tiny, lite, vit_b, vit_l, vit_h"),
        (
            "classifier.output_stride",
            12,
            r"^classifier.output_stride is 12; expected one of 4, 8, 14, 16, 32",
        ),
        ("classifier.optimiser", "adam", r"^classifier.optimiser is adam; expected one of sgd, adamw"),
        ("classifier.lr", 0, r"^classifier.lr is 0; expected more than 0"),
        ("classifier.epochs", 0, r"^classifier.epochs is 0; expected a number above 0"),
        ("segmenter.epochs", float("inf"), r"^segmenter.epochs is inf; expected a number above 0"),
        ("cpm.warmup_epochs", -0.5, r"^cpm.warmup_epochs is -0.5; expected 0 or more epochs"),
        ("classifier.layer_decay", 1.5, r"^classifier.layer_decay is 1.5; expected above 0, at most 1"),
        ("classifier.freeze_stages", "no", r"^classifier.freeze_stages is no; expected 0 or more, or all"),
        ("classifier.layers", (), r"^classifier.layers is \(\); expected one layer or more"),
        ("segmenter.head_lr_factor", 0, r"^segmenter.head_lr_factor is 0; expected more than 0"),
        ("segmenter.batch_size", 0, r"^segmenter.batch_size is 0"),
        ("segmenter.augment.crop_px", 8, r"^segmenter.augment.crop_px is 8; expected at least 32"),
        ("segmenter.augment.long_side_px", (9, 8), r"^segmenter.augment.long_side_px"),
        ("segmenter.augment.long_side_px", 9, r"^segmenter.augment.long_side_px is 9"),
        ("classifier.loss_weights.cpm", -1, r"^classifier.loss_weights.cpm is -1"),
        ("label.max_side_px", 8, r"^label.max_side_px is 8"),
        ("label.classifier_side_px", 31, r"^label.classifier_side_px is 31; expected at least 32 pixels, or"),
        ("predict.scales", (1.0, 0.0), r"^predict.scales is \(1.0, 0.0\); expected one or more scales"),
        ("predict.batch_size", 0, r"^predict.batch_size is 0"),
        ("evaluate.cam_threshold", 1.1, r"^evaluate.cam_threshold is 1.1"),
    ],
)
def test_values_out_of_range_name_the_full_key(key, value, message):
    with pytest.raises(UserError, match=message):
        override(Recipe(), {key: value})


@pytest.mark.parametrize("name", PRESETS)
def test_flatten_round_trip(name):
    recipe = PRESETS[name]
    stored = json.loads(json.dumps(flatten(recipe)))  # as manifests keep it
    assert override(Recipe(), stored) == recipe
    assert stored == flatten(recipe)


def test_presets():
    assert set(PRESETS) == set(get_args(PresetName)) == {"photos", "voc", "coco", "demo"}
    assert DEFAULT_PRESET == "photos"
    photos = PRESETS["photos"]
    assert (photos.sam.name, photos.cpm.view, photos.classifier.freeze_stages) == ("auto", "image", "all")
    assert None not in (photos.classifier.epochs, photos.cpm.warmup_epochs, photos.segmenter.epochs)
    classifier = resolve_epochs(photos, "classifier", 300)
    assert (classifier.classifier.max_iters, classifier.cpm.warmup_iters) == (225, 113)
    few = resolve_epochs(photos, "classifier", 24)
    assert (few.classifier.max_iters, few.cpm.warmup_iters) == (200, 100)
    assert resolve_epochs(photos, "segmenter", 24).segmenter.max_iters == 100
    assert PRESETS["voc"] == Recipe()
    assert (PRESETS["coco"].classifier.lr, PRESETS["coco"].classifier.max_iters) == (0.005, 400_000)
    assert PRESETS["coco"].cpm.warmup_iters == 30_000
    assert PRESETS["demo"].sam.name == "tiny"
    assert not PRESETS["demo"].classifier.pretrained
    for name in ("voc", "coco"):  # the released recipe for segmentation
        segmenter = PRESETS[name].segmenter
        assert (segmenter.augment.long_side_px, segmenter.augment.crop_px) == ((256, 768), 384)
        assert segmenter.augment.jitter == (0.3, 0.3, 0.3, 0.1)
        assert (segmenter.head_lr_factor, PRESETS[name].classifier.head_lr_factor) == (10.0, 1.0)
        assert PRESETS[name].classifier.augment == AugmentConfig()
    demo = PRESETS["demo"]
    assert demo.classifier.augment == demo.segmenter.augment
    assert (demo.classifier.head_lr_factor, demo.segmenter.head_lr_factor) == (1.0, 1.0)
    for recipe in PRESETS.values():  # the figures of docs/results.md are of a single view
        assert (recipe.predict.scales, recipe.predict.flip) == ((1.0,), False)


@pytest.mark.parametrize(
    ("chosen", "changed"),
    [
        ({"classifier.max_iters"}, {"classifier.epochs": None}),
        ({"cpm.warmup_iters", "cpm.tau"}, {"cpm.warmup_epochs": None}),
        ({"segmenter.max_iters"}, {"segmenter.epochs": None}),
        ({"segmenter.max_iters", "segmenter.epochs"}, {"segmenter.min_iters": 0}),
        ({"classifier.epochs", "classifier.lr"}, {"classifier.min_iters": 0}),
        ({"segmenter.epochs", "segmenter.min_iters"}, {}),
    ],
)
def test_a_chosen_length_replaces_the_presets(chosen, changed):
    assert without_other_lengths(PRESETS["photos"], chosen) == override(PRESETS["photos"], changed)


def test_chosen_epochs_are_not_stretched():
    recipe = override(Recipe(), {"classifier.epochs": 12.0, "classifier.min_iters": 100})
    chosen = choose(recipe, {"classifier.epochs": 2.0})
    assert (chosen.classifier.epochs, chosen.classifier.min_iters) == (2, 0)


def test_sam_by_the_device():
    auto = SamConfig(encode_batch_size=3)
    assert auto.on("cuda") == SamConfig(name="vit_h", encode_batch_size=3)
    assert auto.on("cpu") == SamConfig(name="lite", encode_batch_size=3)
    assert SamConfig(name="vit_b", checkpoint="b.pth").on("cpu").name == "vit_b"
    with pytest.raises(UserError, match=r"sam.checkpoint is h.pth, but sam.name is auto; expected the name"):
        SamConfig(checkpoint="h.pth").on("cuda")
    with pytest.raises(UserError, match=r"sam.compile is on; expected auto or off, since lite"):
        SamConfig(compile="on").on("cpu")
    with pytest.raises(KeyError, match="auto"):
        _ = auto.card


def test_every_setting_is_documented():
    """A string under the field, in its class or in a base: the command line's help is made of it."""
    files = Path(config_module.__file__).parent.glob("*.py")
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    documented = set()
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            assert ast.get_docstring(node), node.name
            for item, below in zip(node.body, node.body[1:]):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and is_text:
                    documented.add((node.name, item.target.id))

    def check(config) -> None:
        for field in fields(config):
            value = getattr(config, field.name)
            if is_dataclass(value):
                check(value)
            else:
                assert any((c.__name__, field.name) in documented for c in type(config).__mro__), field.name

    check(Recipe())
    assert len(documented) > 40


def test_tiles_overlap_by_half_at_most():
    tiles = override(Recipe(), {"label.tile_px": 512})
    assert tiles.label.tile_overlap_px == 64
    assert override(tiles, {"label.tile_overlap": 256}).label.tile_overlap_px == 256
    for overlap in (7, 257):
        with pytest.raises(UserError, match=rf"^label.tile_overlap is {overlap}; expected 8 to 256 pixels"):
            override(tiles, {"label.tile_overlap": overlap})
    assert Recipe().label.tile_overlap_px == 0


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("vit_h", {}, (0.88, 0.95)),
        ("lite", {}, (0.4, 0.1)),
        ("lite", {"pred_iou_thresh": 0.88}, (0.88, 0.1)),
        ("sam2.1_tiny", {"stability_score_thresh": 0.0}, (0.88, 0.0)),
    ],
)
def test_thresholds_of_segments_suit_the_model(model, given, expected):
    config = SegmentsConfig(**given)
    assert config.suiting(MODELS[model]).thresholds == expected
    with pytest.raises(ValueError, match="the thresholds depend on the model"):
        _ = config.thresholds
