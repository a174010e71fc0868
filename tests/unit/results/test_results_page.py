"""The results page: its markers and the code's tables agree, and tables say what measurements left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_wsss.ablation import VARIANTS
from ray_wsss.errors import UserError
from ray_wsss.results.markdown import seed_cells, table
from ray_wsss.results.measurements import MEASUREMENTS, tables_of, update_pages, with_needed
from ray_wsss.results.of_labels import roc_area
from ray_wsss.results.of_photos import with_ten_classes
from ray_wsss.results.origin import origin_of
from ray_wsss.results.page import names_of, with_tables
from ray_wsss.results.setup import Setup
from ray_wsss.storage import write_json
from ray_wsss.sweeps.trials import Trial

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "docs" / "results.md", ROOT / "README.md")
RECORD = {
    "began": "2026-11-26T13:02:50+00:00",
    "seconds": 107.2,
    "versions": {},
    "commit": "1109f3cea084c91c99219665d156d205767fbba2",
    "machine": {"system": "Linux x86_64", "processor": "Intel(R) Xeon(R) Processor", "cores": 2},
}

MACHINE = "2 cores (Intel Xeon), no GPU"


def test_markers_and_code_agree() -> None:
    of_code = [name for measurement in MEASUREMENTS.values() for name in measurement.tables]
    of_pages = [name for page in PAGES for name in names_of(page.read_text(encoding="utf-8"))]
    assert sorted(of_pages) == sorted(of_code)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- table ") == text.count("<!-- end of table -->") == len(names_of(text))


def test_each_measurement_stands_after_those_that_it_needs() -> None:
    names = list(MEASUREMENTS)
    for name, measurement in MEASUREMENTS.items():
        assert all(names.index(other) < names.index(name) for other in measurement.needs)
    assert with_needed(["views", "doubt"]) == ["demo", "doubt", "views"]


def test_only_the_named_tables_change() -> None:
    one, two = (f"<!-- table {name} -->\n\n{name}!\n\n<!-- end of table -->\n" for name in ("one", "two"))
    page = f"a\n{one}b\n{two}"
    expected = page.replace("one!", "| new | \\1 |")
    assert with_tables(page, {"one": "| new | \\1 |", "three": "x"}) == expected
    assert names_of(page) == ["one", "two"]


def test_table() -> None:
    rows = [["a", *seed_cells([0.5, 0.25])], ["b", "", "1.0", ""]]
    assert table(["x", "seed 0", "seed 1", "mean"], rows).splitlines() == [
        "| x | seed 0 | seed 1 | mean |",
        "| --- | --: | --: | --: |",
        "| a | 50.0 | 25.0 | 37.5 |",
        "| b | | 1.0 | |",
    ]


def test_origin(tmp_path: Path) -> None:
    write_json(
        [RECORD | {"began": "2026-11-30T13:02:50+00:00", "commit": "ffffffff"}], tmp_path / "runs.json"
    )
    assert origin_of(tmp_path, "x").startswith("30 November 2026, commit fffffff, ")
    later = RECORD | {"began": "2026-11-27T13:02:50+00:00", "commit": None}
    for name, record in (("a", RECORD), ("b", later)):
        (tmp_path / name).mkdir()
        write_json([record], tmp_path / name / "runs.json")
    # The stages' own records come first: a resumed measurement has later ones.
    expected = (
        "26 November 2026 to 27 November 2026, commits 1109f3c, unknown, 2 cores (Intel Xeon), no GPU: `x`"
    )
    assert origin_of(tmp_path, "x") == expected
    linked = tmp_path.parent / f"{tmp_path.name}_linked"
    linked.mkdir()
    (linked / "a").symlink_to(tmp_path / "a")
    assert origin_of(linked, "x") == f"26 November 2026, commit 1109f3c, {MACHINE}: `x`"


def test_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert roc_area(scores, positive) == pytest.approx(np.mean(pairs))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Outputs as measurements leave them."""
    miou = {
        v.name: {"cam_best": [0.4 + k / 100, 0.5], "cam_fixed": [0.3, 0.4]} for k, v in enumerate(VARIANTS)
    }
    figures: dict[str, Any] = {
        "ablation/ablation.json": {"seeds": [0, 1], "miou": miou},
        "ablation/seed_0/cls/runs.json": [RECORD],
        "photos/compared.json": {
            "seeds": [1, 0],
            "miou": {"with CPM": {"cam_best": [0.1, 0.3], "pseudo_label": [0.25, 0.25]}},
        },
        "segmenters/compared.json": {
            "seeds": [0, 1],
            "miou": {"upernet": {"pseudo_label": [0.1, 0.1], "segmenter": [0.2, 0.3]}},
        },
        "clicks/clicks.json": {
            "COCO": {"lite": {"objects": 679, "best_iou": 0.4815}, "tiny": {"objects": 679, "best_iou": 0.24}}
        },
    }
    for name, content in figures.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(content, tmp_path / name)
    for number, (tau, seed, score) in enumerate([(0.7, 0, 0.5), (0.7, 1, 0.6), (0.2, 0, 0.7), (0.2, 1, 0.7)]):
        Trial(
            number=number,
            params={"cpm.tau": tau, "classifier.seed": seed},
            max_iters=2,
            status="finished",
            curve=[{"iteration": 2, "val_miou_best_threshold": score}],
        ).save(tmp_path / "tau" / "sweep")
    return tmp_path


def test_tables_say_what_was_measured(out: Path) -> None:
    found = tables_of(Setup(out=out, seeds=(0, 1)), ["ablation", "photos", "segmenters", "clicks", "tau"])
    ablation = found["ablation"].splitlines()
    assert ablation[0] == "| loss | seed 0 | seed 1 | mean | standard deviation | fixed threshold, mean |"
    assert ablation[2] == "| cls | 40.0 | 50.0 | 45.0 | 7.1 | 35.0 |"
    assert ablation[-1].startswith(f"26 November 2026, commit 1109f3c, {MACHINE}: `python")
    assert found["photos"].splitlines()[2] == "| with CPM | 20.0 ± 14.1 | 25.0 ± 0.0 |"
    assert found["segmenters"].splitlines()[:3:2] == [
        "| architecture | segmenter |",
        "| upernet | 25.0 ± 7.1 |",
    ]
    assert found["clicks"].splitlines()[2] == "| COCO | 679 | 0.48 | 0.24 |"
    assert found["tau"].splitlines()[2:4] == ["| 0.2 | 70.0 ± 0.0 |", "| 0.7 | 55.0 ± 7.1 |"]
    one_seed = tables_of(Setup(out=out, seeds=(1,)), ["photos"])["photos"]
    assert one_seed.splitlines()[2] == "| with CPM | 10.0 | 25.0 |"


def test_images_without_one_of_the_ten_classes_stay(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 5, "name": "person"}, {"id": 7, "name": "zebra"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5},
            {"id": 2, "image_id": 2, "category_id": 7},
        ],
    }
    annotations = tmp_path / "data" / "coco" / "annotations"
    annotations.mkdir(parents=True)
    for part in ("train", "val"):
        write_json(content, annotations / f"instances_{part}.json")
    folder = with_ten_classes(Setup(out=tmp_path / "out", data=tmp_path / "data"))
    assert json.loads((folder / "instances_val.json").read_text()) == content | {
        "categories": content["categories"][:1],
        "annotations": content["annotations"][:1],
    }


def test_what_is_missing_is_said(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ablation lacks figures of seeds 0, 1, 2; expected a measurement"):
        tables_of(Setup(out=out, seeds=(0, 1, 2)), ["ablation"])
    trial = json.loads((out / "tau/sweep/trials/trial_0000/trial.json").read_text())
    write_json(trial | {"status": "running"}, out / "tau/sweep/trials/trial_0000/trial.json")
    for name in ("tau", "views"):
        with pytest.raises(UserError, match=f"{name} lacks figures"):
            tables_of(Setup(out=out, seeds=(0, 1)), [name])
    page = tmp_path / "page.md"
    page.write_text("<!-- table views -->\n<!-- end of table -->\n")
    with pytest.raises(UserError, match=r"page\.md has no place for table tau"):
        update_pages([page], {"tau": "x"})
    with pytest.raises(UserError, match="can't be read"):
        update_pages([tmp_path / "none.md"], {})
    assert update_pages([page], {"views": "| 1 |"}) == [page]
    assert update_pages([page], {"views": "| 1 |"}) == []
    assert "| 1 |" in page.read_text()
