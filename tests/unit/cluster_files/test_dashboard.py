"""Every query of the Grafana dashboard is about metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from ray_wsss.runs.tally import COUNTS

OWN = re.compile(r"ray_wsss_\w+")
NAMES = re.compile(r"\bray_[a-z_]+\b")
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$session": ".*", "$run": ".*"}
REPORTED = {"iteration", "lr", "seconds_per_step", "data_wait_s", "val_miou", "val_miou_best_threshold"}
"""What `training.loop` and `training.validation` report, but for the losses."""


@pytest.fixture(scope="module")
def board(cluster_files: Path) -> dict[str, Any]:
    return json.loads((cluster_files / "grafana.json").read_text(encoding="utf-8"))


def _queries(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def test_grafana_knows_every_field(board: dict[str, Any]):
    """Grafana's published schema, as its own library has it, keeps the whole of the dashboard."""
    register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    lost = set(_fields(board)) - set(_fields(kept))
    # What Grafana itself writes beside a variable's query; the schema has no word for it.
    assert {path.rpartition("/")[2] for path, _ in lost} == {"definition"}


def _fields(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document that is neither an object nor an array, with the path to it."""
    entries = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else None
    if entries is None:
        yield path, part
        return
    for name, value in entries:
        yield from _fields(value, f"{path}/{name}")


def test_metrics_of_ours_are_exported(board: dict[str, Any]):
    counters = {f"ray_wsss_{name}_total" for name in (*COUNTS, "phase_seconds")}
    gauges = {f"ray_wsss_train_{name}" for name in REPORTED} | {"ray_wsss_train_loss_"}
    used = {name for query in _queries(board) for name in OWN.findall(query)}
    assert used == counters | gauges


def test_metrics_of_ray_are_exported(board: dict[str, Any], ray_files: Path):
    reporter = ray_files / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    exported = set(re.findall(r'Gauge\(\s*"(\w+)"', reporter.read_text(encoding="utf-8")))
    # Those of the C++ core are named in Ray's own dashboards.
    panels = ray_files / "dashboard" / "modules" / "metrics" / "dashboards" / "default_dashboard_panels.py"
    exported |= {name.removeprefix("ray_") for name in NAMES.findall(panels.read_text(encoding="utf-8"))}
    used = {n.removeprefix("ray_") for q in _queries(board) for n in NAMES.findall(q) if not OWN.match(n)}
    assert len(used) > 8
    assert used <= exported


def test_source_is_a_variable_and_all_variables_are_defined(board: dict[str, Any]):
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert variables == {"datasource", "session", "run"}
    for panel in board["panels"]:
        for part in (panel, *panel.get("targets", [])):
            assert part.get("datasource", {}).get("uid", "${datasource}") == "${datasource}"
    for query in _queries(board):
        assert set(re.findall(r"\$[a-z_]+", query)) <= set(VARIABLES)


def test_panels_lie_side_by_side(board: dict[str, Any]):
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_prometheus_understands_every_query(board: dict[str, Any], tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on the PATH; it comes with Prometheus")
    rules = []
    for number, query in enumerate(_queries(board)):
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        rules.append({"record": f"query_{number}", "expr": query})
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    checked = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
