"""Variants of a recipe on small scenes: what they share, what they score, and going on."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from ray_wsss.benchmark.recipes import compare_recipes, read_variants, recipes_table
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.demo.scenes import make_scenes
from ray_wsss.errors import UserError

SHORT = {
    "classifier.max_iters": 2,
    "classifier.batch_size": 2,
    "cpm.warmup_iters": 1,
    "cpm.view": "image",
    "label.scales": (1.0,),
    "segmenter.max_iters": 2,
    "segmenter.batch_size": 2,
}
VARIANTS = {
    "with CPM": {},
    "without CPM": {"cpm.enabled": False},
    "without CPM, high tau": {"cpm.enabled": False, "label.tau": 0.9},
}


def compare(scenes: Path, out: Path, variants=VARIANTS, **options):
    recipe = override(PRESETS["demo"], SHORT)
    sets = {"dataset": scenes / "train", "held_out": scenes / "held_out"}
    return compare_recipes(recipe, variants, **sets, out=out, **{"seeds": [0], "segmenter": False} | options)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    make_scenes(folder := tmp_path_factory.mktemp("scenes"), 0, 4, 2)
    return folder


@pytest.fixture(scope="module")
def compared(scenes, tmp_path_factory) -> Path:
    compare(scenes, out := tmp_path_factory.mktemp("compared"), seeds=[0, 1])
    return out


def test_scores(compared):
    results = json.loads((compared / "compare_recipes.json").read_text())
    assert list(results["miou"]) == list(VARIANTS)
    for scores in results["miou"].values():
        assert list(scores) == ["cam_best", "cam_fixed", "pseudo_label"]
        assert all(len(values) == 2 and min(values) >= 0 and max(values) <= 1 for values in scores.values())
    with_cpm, without, high_tau = results["miou"].values()
    assert with_cpm["cam_best"] != without["cam_best"]  # the settings are those of the variant
    assert without["cam_best"] == high_tau["cam_best"]  # of the same classifier
    console = Console(record=True, width=120)
    console.print(recipes_table(results))
    assert "pseudo label" in (text := console.export_text())
    assert "segmenter" not in text


def test_variants_share_what_is_the_same(compared):
    made = [path.name.rsplit("_", 1)[0] for path in (compared / "seed_0").iterdir()]
    assert sorted(made) == ["classifier"] * 2 + ["labels_held_out"] * 3 + ["scores"] * 3
    assert sorted(path.name.rsplit("_", 1)[0] for path in (compared / "all_seeds").iterdir()) == [
        "embeddings_held_out",
        "embeddings_train",
    ]


def test_it_goes_on(scenes, compared):
    models = {
        path: path.stat().st_mtime_ns for path in compared.glob("seed_*/classifier_*/model.safetensors")
    }
    assert len(models) == 4
    before = json.loads((compared / "compare_recipes.json").read_text())
    found = compare(scenes, compared, {"with CPM": {}}, segmenter=True)
    assert found["miou"]["with CPM"]["cam_best"] == before["miou"]["with CPM"]["cam_best"][:1]
    assert 0 <= found["miou"]["with CPM"]["segmenter"][0] <= 1
    assert {path: path.stat().st_mtime_ns for path in models} == models


def test_bad_variants(scenes, tmp_path):
    with pytest.raises(UserError, match=r'variant "a": unknown key cpm\.tua'):
        compare(scenes, tmp_path, {"a": {"cpm.tua": 0.3}})
    for text in ("[", "[1]", '{"a": 1}'):
        (path := tmp_path / "v.json").write_text(text)
        with pytest.raises(UserError, match=r"--variants .*v\.json"):
            read_variants(path)
    with pytest.raises(UserError, match="can't be read"):
        read_variants(tmp_path / "none.json")
