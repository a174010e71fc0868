"""The import direction of the package: contracts in pyproject.toml, and a look at a process without Ray."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import ray_wsss

ROOT = Path(__file__).parents[2]
BELOW_CLUSTER = (
    "config",
    "console",
    "data",
    "errors",
    "export",
    "figures",
    "label_format",
    "memory",
    "models",
    "ops",
    "pretraining",
    "report",
    "runs",
    "stages",
    "storage",
    "sweeps",
    "training",
    "version",
)
MOST_FILES = 16

_IMPORT_WITHOUT_RAY = """
import importlib, sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name == "ray" or name.startswith("ray."):
            raise ModuleNotFoundError(f"no module named {name}: this test hides it")

sys.meta_path.insert(0, NoRay())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_contracts() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    result = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_every_module_has_a_place() -> None:
    """A new module at the top must be added to the contracts."""
    top = {module.name for module in pkgutil.iter_modules(ray_wsss.__path__)}
    assert top == {
        *BELOW_CLUSTER,
        "__main__",
        "ablation",
        "benchmark",
        "cli",
        "cluster",
        "commands",
        "demo",
        "results",
    }


def test_one_concern_one_folder() -> None:
    """A folder that grows beyond this holds more than one concern."""
    package = Path(ray_wsss.__path__[0])
    folders = [package, *(path for path in package.rglob("*") if path.is_dir())]
    counts = {folder: len([*folder.glob("*.py")]) for folder in folders}
    assert len(counts) > 15
    assert {folder.name: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_importable_without_ray() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(ray_wsss.__path__, "ray_wsss.")
        if module.name.split(".")[1] in BELOW_CLUSTER
    ]
    assert len(names) > 20
    command = [sys.executable, "-c", _IMPORT_WITHOUT_RAY, *names]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_processes_that_only_decode_or_ingest_need_no_torch() -> None:
    names = ("ray_wsss.cluster.decode", "ray_wsss.cluster.actors", "ray_wsss.cluster.stages.ingest")
    driver = "ray_wsss.demo.run"  # its steps run in other processes
    for name in (*names, driver):
        code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0, name
