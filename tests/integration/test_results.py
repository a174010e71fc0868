"""The measurements of the results page that start from a demo, on a few scenes, and going on."""

from dataclasses import replace
from pathlib import Path

import pytest

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import STAGE_HERE
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.results.measurements import measure, tables_of
from ray_wsss.results.setup import Setup

NAMES = ["prompts", "doubt", "corrections", "views"]
SPACE = """
from ray import tune

SPACE = {
    "cpm.tau": tune.grid_search([0.3]),
    "classifier.seed": tune.grid_search([0]),
    "classifier.max_iters": 3,
    "classifier.validate_every": 3,
    "cpm.warmup_iters": 1,
}
METRIC, MODE, PRESET, SCHEDULER = "val_miou_best_threshold", "max", "demo", "none"
"""


@pytest.fixture(scope="module")
def setup(
    dataset: Path,
    classifier: Path,
    segmenter: Path,
    small_recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Setup:
    """With a demo whose classifier and segmenter have hardly learned anything."""
    recipe = override(small_recipe, {"cpm.view": "image"})
    setup = Setup(out=tmp_path_factory.mktemp("results"), seeds=(0,), recipe=recipe)
    demo = setup.demo(0)
    demo.mkdir(parents=True)
    given = {"train": dataset, "held_out": dataset, "classifier_cpm": classifier, "segmenter": segmenter}
    for name, path in given.items():
        (demo / name).symlink_to(path)
    stored = demo / "embeddings"
    run_embed(recipe, dataset=demo / "train", out=stored, **STAGE_HERE)
    labels = demo / "labels_train_cpm"
    inputs = {"dataset": demo / "train", "classifier": classifier, "embeddings": stored, "out": labels}
    run_label(recipe, **inputs, **STAGE_HERE)
    return setup


@pytest.mark.usefixtures("ray_cluster")
def test_measure_and_go_on(setup: Setup) -> None:
    for name in NAMES:
        measure(setup, name)
    found = tables_of(setup, NAMES)
    rows = {name: text.splitlines()[2:] for name, text in found.items()}
    kinds = [row.split(" | ")[0].removeprefix("| ") for row in rows["prompts"] if row.startswith("|")]
    assert kinds[0] == "points"
    assert kinds[-2:] == ["annotated points", "annotated boxes"]
    assert len([row for row in rows["doubt"] if " of 24 |" in row]) == 4
    assert DatasetMetadata.load(setup.out / "corrections/seed_0_30/corrections").images == round(0.3 * 24)
    assert [row.split(" | ")[0] for row in rows["corrections"][:3]] == ["| none", "| 10 %", "| 30 %"]
    assert len(rows["views"][:3]) == 3
    scores = {path.read_text() for path in (setup.out / "views").glob("seed_0_*.json")}
    assert len(scores) == 3  # each way has its own
    assert "commit" in found["views"].splitlines()[-1]

    written = {path: path.stat().st_mtime_ns for path in setup.out.rglob("*.json")}
    (setup.out / "corrections/seed_0_10.json").unlink()
    for name in NAMES:
        measure(setup, name)
    assert tables_of(setup, NAMES)["corrections"].splitlines()[:-1] == found["corrections"].splitlines()[:-1]
    models = [path for path in written if path.parent.name == "segmenter"]
    assert {path: path.stat().st_mtime_ns for path in models} == {path: written[path] for path in models}


@pytest.mark.usefixtures("ray_cluster")
def test_measure_tau(setup: Setup, tmp_path: Path) -> None:
    space = tmp_path / "space.py"
    space.write_text(SPACE)
    setup = replace(setup, tau_space=space)
    for _ in range(2):  # the second finds everything done
        measure(setup, "tau")
        rows = tables_of(setup, ["tau"])["tau"].splitlines()
        assert rows[2].startswith("| 0.3 | ")
        assert "commit" in rows[-1]
