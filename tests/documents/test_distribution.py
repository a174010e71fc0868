"""The published files: the wheel and the sdist are complete, and the wheel works without the clone.

pytest -m slow tests/documents/test_distribution.py
"""

import email
import os
import re
import site
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from document_blocks import ROOT
from PIL import Image

from ray_wsss.data.scenes import make_scene
from ray_wsss.version import __version__

pytestmark = pytest.mark.slow
NAME = f"ray_wsss-{__version__}"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
"""Without PYTHONPATH, by which the clone would be found."""


def _tracked(*paths: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(listed.stdout.splitlines())


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    # Without isolation: the tools are installed, and nothing is fetched.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert {path.name for path in out.iterdir()} == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    return distributions / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        scripts = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert names == _tracked("ray_wsss")
    assert sum(not name.endswith(".py") for name in names) >= 10  # weights, templates, py.typed
    assert "ray-wsss = ray_wsss.cli:main" in scripts
    assert wheel.stat().st_size < 16 * 2**20


def test_the_sdist_can_build_and_be_read(distributions: Path) -> None:
    with tarfile.open(distributions / f"{NAME}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= _tracked("ray_wsss", "README.md", "LICENSE", "pyproject.toml")


def test_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "ray-wsss"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert str(metadata.get_payload()).startswith("# ray_wsss")
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"deep", "heif", "huggingface", "s3", "gcs", "sam2", "sweep"} <= extras


def test_changelog_and_citation_have_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", changes, re.M)
    assert next(name for name in headings if name != "Unreleased") == __version__.partition(".dev")[0]
    assert f'version: "{__version__}"' in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a virtual environment that has the wheel, and sees the packages installed here."""
    root = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    (packages,) = (root / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", root / "bin" / "python", "install"]
    subprocess.run([*install, "--quiet", "--no-deps", "--no-index", wheel], check=True, env=ENVIRONMENT)
    # After the wheel's own folder, and read without the .pth files that make an editable install importable.
    (packages / "packages_of_the_tests.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return root / "bin"


def _run(installed: Path, folder: Path, *words: object) -> str:
    command = [installed / "ray-wsss", *map(str, words)]
    ended = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_wheel_runs_without_the_clone(installed: Path, classifier: Path, tmp_path: Path) -> None:
    assert _run(installed, tmp_path, "--version") == f"ray-wsss {__version__}\n"
    where = [installed / "python", "-Pc", "import ray_wsss; print(ray_wsss.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert Path(found.stdout.strip()).is_relative_to(installed.parent)
    assert "train-classifier" in _run(installed, tmp_path, "--help")

    Image.fromarray(make_scene(7, 96, 96).image).save(tmp_path / "scene.png")
    flags = ["--classifier", classifier, "--preset", "demo", "--threshold", "0", "--out", "look.png"]
    told = _run(installed, tmp_path, "show", "scene.png", *flags)  # with the tiny SAM of the wheel
    assert "look.png" in told
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.width > 500


def test_the_report_of_the_wheel_has_its_templates(installed: Path, classifier: Path, tmp_path: Path) -> None:
    _run(installed, tmp_path, "report", classifier, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "</html>" in page
    assert "{{" not in page
