"""Search spaces: what is refused before anything starts, what is drawn, and that the shipped ones train."""

import ast
from pathlib import Path
from typing import Any

import pytest

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.tune.space import load_space
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.errors import UserError
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.local_session import LocalSession

SPACES = Path(__file__).parents[2] / "tune_spaces"
SHIPPED = ("coco", "demo", "tau", "voc")
HEAD = 'from ray import tune\nMETRIC = "val_miou"\nMODE = "max"\n'


def write_space(folder: Path, content: str, head: str = HEAD) -> Path:
    path = folder / "space.py"
    path.write_text(head + content)
    return path


def test_every_space_is_tested() -> None:
    assert tuple(sorted(path.stem for path in SPACES.glob("*.py"))) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_says_what_it_does(name: str) -> None:
    space = load_space(SPACES / f"{name}.py")
    tree = ast.parse((SPACES / f"{name}.py").read_text())
    text = ast.get_docstring(tree) or ""
    assert f"ray-wsss sweep --space tune_spaces/{name}.py" in text
    assert "Cost:" in text
    assert "Expected:" in text
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["from ray import tune"]
    varied = {*space.domains, *space.grid}
    three = {"classifier.lr", "cpm.tau", "cpm.warmup_iters"}
    assert varied == ({"cpm.tau", "classifier.seed"} if name == "tau" else three)


@pytest.fixture(scope="module")
def embeddings(
    small_recipe: Recipe, dataset: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "embeddings"
    run_embed(small_recipe, dataset=dataset, out=out, resources=Resources(), cluster=Cluster())
    return out


@pytest.mark.parametrize("name", SHIPPED)
def test_a_trial_of_a_shipped_space_runs(
    name: str, small_recipe: Recipe, dataset: Path, embeddings: Path, tmp_path: Path
) -> None:
    """On the small recipe, with CPM from the second step on."""
    space = load_space(SPACES / f"{name}.py")
    recipe = override(small_recipe, space.settings)
    (params, *_) = space.sample(1, 0)
    recipe = override(recipe, params | {"cpm.warmup_iters": 1, "classifier.max_iters": 2})
    views: dict[str, Any] = {"embeddings": embeddings} if recipe.cpm.view == "image" else {}
    session = LocalSession(tmp_path)
    train_classifier(recipe, dataset, session, validation=dataset, **views)
    checkpoint = session.latest_checkpoint()
    assert checkpoint is not None
    assert '"loss_cpm"' in (checkpoint / "progress.json").read_text()
    assert f'"{space.metric}"' in (checkpoint / "progress.json").read_text()


def test_samples_are_reproduced_and_more_begin_with_the_same(tmp_path: Path) -> None:
    keys = '"cpm.tau": tune.uniform(0.3, 0.8), "classifier.lr": tune.qloguniform(1e-3, 1e-1, 1e-3)'
    path = write_space(tmp_path, f'SPACE = {{{keys}, "classifier.seed": tune.grid_search([0, 1])}}')
    space = load_space(path)
    few, many = space.sample(2, 3), space.sample(4, 3)
    assert many[:4] == few
    assert [params["classifier.seed"] for params in many] == [0, 1] * 4
    assert len({params["cpm.tau"] for params in many}) == 8
    assert all(type(value) in (int, float) for params in many for value in params.values())
    assert space.sample(2, 4) != few
    assert space.log_keys() == {"classifier.lr"}
    assert space.describe() == {
        "space.cpm.tau": "float Uniform (0.3, 0.8)",
        "space.classifier.lr": "float LogUniform (0.001, 0.1) in steps of 0.001",
        "space.classifier.seed": [0, 1],
    }


def test_fixed_settings_and_choices(tmp_path: Path) -> None:
    keys = (
        '"cpm.view": tune.choice(["crop", "image"]), "cpm.warmup_iters": tune.randint(1, 9), "cpm.tau": 0.4'
    )
    space = load_space(write_space(tmp_path, f'SPACE = {{{keys}}}\nPRESET = "demo"'))
    assert space.settings == {"cpm.tau": 0.4}
    assert sorted(space.bounds()) == [
        ("cpm.view", "crop"),
        ("cpm.view", "image"),
        ("cpm.warmup_iters", 1),
        ("cpm.warmup_iters", 8),
    ]
    assert (space.preset, space.scheduler, space.num_samples, space.grace) == ("demo", "asha", 1, 0.25)


TAU = 'SPACE = {"cpm.tau": tune.uniform(0.3, 0.8)}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('SPACE = {"cpm.tua": tune.uniform(0, 1)}', r"unknown key cpm.tua: did you mean cpm.tau\?"),
        ('SPACE = {"cpm.tau": tune.uniform(0.3, 1.5)}', r"cpm.tau is 1.5; expected a CAM value"),
        ('SPACE = {"cpm.tau": tune.grid_search([0.3, 3])}', r"cpm.tau is 3; expected a CAM value"),
        ('SPACE = {"cpm.tau": tune.grid_search([])}', r"cpm.tau has no values"),
        ('SPACE = {"cpm.view": tune.choice(["crop", "shop"])}', r"cpm.view is shop; expected one of crop"),
        (
            'SPACE = {"cpm.warmup_iters": tune.uniform(10, 20)}',
            r"cpm.warmup_iters is 15\.\d+; expected whole numbers",
        ),
        ('SPACE = {"segmenter.lr": tune.uniform(0.1, 1)}', r"segmenter.lr has no part in training a classif"),
        ('SPACE = {"cpm.tau": 0.4}', r"SPACE varies nothing"),
        ('SPACE = {"cpm.tau": tune.sample_from(lambda _: 0.4)}', r"cpm.tau is a function"),
        ("SPACE = {}", r"SPACE is \{\}; expected a dict"),
        ("", r"has no SPACE; expected a dict"),
        (TAU + 'METRIC = "val_mio"', r"METRIC is val_mio; expected one of val_miou, val_miou_best_threshold"),
        (TAU + 'MODE = "high"', r"MODE is high; expected one of max, min"),
        (TAU + 'PRESET = "vco"', r"PRESET is vco; expected one of photos, voc, coco, demo"),
        (TAU + "GRACE = 60", r"GRACE is 60; expected a share in \(0, 1\)"),
        (TAU + "NUM_SAMPLES = 0", r"NUM_SAMPLES is 0; expected a number of at least 1"),
        ("SPACE = {1: ", r"fails with SyntaxError"),
        ("SPACE = tune.nothing", r"fails with AttributeError"),
    ],
)
def test_what_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        load_space(write_space(tmp_path, content))
    assert str(tmp_path / "space.py") in str(refusal.value)


def test_no_space(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.py is not a file"):
        load_space(tmp_path / "nowhere.py")
    with pytest.raises(UserError, match=r"has no METRIC"):
        load_space(write_space(tmp_path, TAU, head="from ray import tune\n"))


def test_presets_are_not_changed_by_loading() -> None:
    before = dict(PRESETS)
    load_space(SPACES / "demo.py")
    assert before == PRESETS
