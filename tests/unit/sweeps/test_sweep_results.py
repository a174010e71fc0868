"""What a sweep ends in: files that can be used, a table, and a verdict on the plateau over tau."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.settings_file import load_recipe
from ray_wsss.errors import UserError
from ray_wsss.sweeps.figures import find_plateau, sweeps_tau_alone
from ray_wsss.sweeps.results import conclude_sweep
from ray_wsss.sweeps.table import ranking_table
from ray_wsss.sweeps.trials import Configuration, Trial, rank

METRIC = "val_miou"
SECTIONS = ("classifier", "cpm", "sam")
TAUS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def conclude(
    trials: Sequence[Trial], out: Path, recipe: Recipe, preset: str = "demo"
) -> tuple[list[Configuration], list[str]]:
    out.mkdir(exist_ok=True)
    return conclude_sweep(
        trials,
        out,
        recipe=recipe,
        preset=preset,
        sections=SECTIONS,
        metric=METRIC,
        mode="max",
        log_keys={"classifier.lr"},
    )


def make_trial(number: int, params: dict[str, Any], scores: Sequence[float], **changes: Any) -> Trial:
    curve = [{"iteration": 50.0 * (k + 1), METRIC: score} for k, score in enumerate(scores)]
    return Trial(number=number, params=params, max_iters=100, curve=curve, **changes)


@pytest.fixture
def mixed() -> list[Trial]:
    values = [(1e-3, 0.4, 20), (2e-3, 0.5, 40), (4e-3, 0.6, 20), (9e-3, 0.3, 60)]
    keys = ("classifier.lr", "cpm.tau", "cpm.warmup_iters")
    params: list[dict[str, Any]] = [dict(zip(keys, v)) for v in values]
    return [
        make_trial(0, params[0], [0.2, 0.5], status="finished"),
        make_trial(1, params[1], [0.3, 0.6], status="finished"),
        make_trial(2, params[2], [0.1], status="stopped"),
        make_trial(3, params[3], [], status="failed", error="FloatingPointError: cls is nan"),
    ]


def tau_trials(miou_at: dict[float, float], noise: float = 0.004) -> list[Trial]:
    points = [(tau, seed) for tau in miou_at for seed in (0, 1, 2)]
    return [
        make_trial(
            number,
            {"cpm.tau": tau, "classifier.seed": seed},
            [miou_at[tau] + noise * (seed - 1)],
            status="finished",
        )
        for number, (tau, seed) in enumerate(points)
    ]


def test_best_is_a_recipe_that_other_commands_take(mixed: list[Trial], tmp_path: Path) -> None:
    common = override(PRESETS["demo"], {"classifier.max_iters": 100, "classifier.validate_every": 50})
    ranking, lines = conclude(mixed, tmp_path, common)
    assert load_recipe(tmp_path / "best.toml") == override(common, mixed[1].params)
    assert ranking[0].trials == [mixed[1]]
    assert "60.0 %" in lines[-1]
    assert "best.toml" in lines[-1]
    assert len(pq.read_table(tmp_path / "results.parquet")) == 4
    for name in ("trials", "parameters"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 400
    assert not (tmp_path / "tau.png").exists()


def test_the_recipe_may_be_of_the_sections_alone(mixed: list[Trial], tmp_path: Path) -> None:
    """The command knows no other section; those stay the preset's."""
    demo = PRESETS["demo"]
    conclude(mixed, tmp_path, Recipe(classifier=demo.classifier, cpm=demo.cpm, sam=demo.sam))
    assert load_recipe(tmp_path / "best.toml") == override(demo, mixed[1].params)


def test_seeds_that_were_averaged_are_left_out(tmp_path: Path) -> None:
    trials = tau_trials(dict.fromkeys(TAUS, 0.6) | {0.5: 0.61})
    conclude(trials, tmp_path, PRESETS["demo"])
    assert load_recipe(tmp_path / "best.toml") == override(PRESETS["demo"], {"cpm.tau": 0.5})
    single = [make_trial(0, {"cpm.tau": 0.3, "classifier.seed": 7}, [0.5], status="finished")]
    conclude(single, tmp_path, PRESETS["demo"])
    expected = override(PRESETS["demo"], {"cpm.tau": 0.3, "classifier.seed": 7})
    assert load_recipe(tmp_path / "best.toml") == expected


def test_epochs_that_were_swept_are_not_stretched_afterwards(tmp_path: Path) -> None:
    photos = override(PRESETS["photos"], {"classifier.min_iters": 100})
    conclude(
        [make_trial(0, {"classifier.epochs": 2.0}, [0.5], status="finished")], tmp_path, photos, "photos"
    )
    best = load_recipe(tmp_path / "best.toml").classifier
    assert (best.epochs, best.min_iters) == (2, 0)


def test_no_trial_finished(mixed: list[Trial], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 2 trials .* FloatingPointError: cls is nan"):
        conclude(mixed[2:], tmp_path, PRESETS["demo"])
    assert len(pq.read_table(tmp_path / "results.parquet")) == 2
    assert not (tmp_path / "best.toml").exists()
    with pytest.raises(UserError, match=r"none of the 1 trials"):  # with nothing to draw
        conclude(mixed[3:], tmp_path, PRESETS["demo"])


@pytest.mark.parametrize(
    ("scores", "shows", "points"),
    [
        ({0.4: 0.600, 0.5: 0.609, 0.6: 0.605, 0.7: 0.601}, True, 0.9),
        ({0.4: 0.600, 0.5: 0.620, 0.6: 0.605, 0.7: 0.601}, False, 2.0),
    ],
)
def test_the_plateau(scores: dict[float, float], shows: bool, points: float, tmp_path: Path) -> None:
    trials = tau_trials(dict.fromkeys(TAUS, 0.3) | scores)
    assert sweeps_tau_alone(trials)
    plateau = find_plateau(rank(trials, METRIC, "max"))
    assert plateau is not None
    assert plateau.shows is shows
    assert plateau.points == pytest.approx(points)
    assert (plateau.taus, plateau.seeds) == ([0.4, 0.5, 0.6, 0.7], 3)
    assert plateau.noise == pytest.approx(0.4)
    _, lines = conclude(trials, tmp_path, PRESETS["demo"])
    assert ("within 1 point shows" in lines[0]) is shows
    assert f"a change of {points:.1f} points (means of 3 seeds; seeds differ by ±0.4" in lines[0]
    with Image.open(tmp_path / "tau.png") as picture:
        assert picture.width > 400


def test_too_few_values_of_tau_say_nothing_of_a_plateau(tmp_path: Path) -> None:
    _, lines = conclude(tau_trials({0.2: 0.5, 0.5: 0.6}), tmp_path, PRESETS["demo"])
    assert len(lines) == 1
    assert (tmp_path / "tau.png").exists()


def test_the_table(mixed: list[Trial]) -> None:
    text = io.StringIO()
    Console(file=text, width=100).print(ranking_table(rank(mixed, METRIC, "max"), METRIC))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().splitlines()]
    assert [row for row in rows if row] == [
        ["1", "1", "0.002", "0.5", "40", "60.0", "finished"],
        ["2", "0", "0.001", "0.4", "20", "50.0", "finished"],
        ["", "2", "0.004", "0.6", "20", "10.0", "stopped at 50 of 100"],
        ["", "3", "0.009", "0.3", "60", "-", "failed: FloatingPointError: cls is nan"],
    ]
    text = io.StringIO()
    Console(file=text).print(ranking_table(rank(tau_trials({0.4: 0.5, 0.6: 0.7}), METRIC, "max"), METRIC))
    assert "│ 1 │  3 4 5 │ 0.6 │  70.0 │ 0.4 │ finished" in text.getvalue()
