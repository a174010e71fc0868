"""Commands of the documents that are quick run as they are written; the README's five commands run too."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from document_blocks import ROOT, Command, all_commands, blocks_of, commands_of

from ray_wsss.cli import main
from ray_wsss.data.schema import DatasetMetadata

SCENES = 20
"""More than a batch of the preset photos."""
STEPS = ["ingest", "embed", "train-classifier", "label", "train-segmenter"]
WriteSource = Callable[[Path, int], tuple[Path, Path]]


@pytest.fixture
def folder(write_source: WriteSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents speak of: photos, labels.csv, val2017 and its JSON."""
    images, annotations = write_source(tmp_path / "source", SCENES)
    content = json.loads(annotations.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for image_id, category_id in {(a["image_id"], a["category_id"]) for a in content["annotations"]}:
        (tmp_path / "photos" / names[category_id]).mkdir(parents=True, exist_ok=True)
        shutil.copy(images / files[image_id], tmp_path / "photos" / names[category_id])
    rows = [f"{p.relative_to(tmp_path / 'photos')},{p.parent.name}" for p in tmp_path.glob("photos/*/*.jpg")]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    images.rename(tmp_path / "val2017")
    annotations.rename(tmp_path / "instances_val2017.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _find(beginning: str) -> Command:
    return next(command for command in all_commands() if command.text.startswith(beginning))


@pytest.mark.usefixtures("ray_cluster")
def test_ingest_and_split(folder: Path) -> None:
    photos = len(list(folder.glob("photos/*/*.jpg")))
    for beginning, out, images in (
        ("ray-wsss ingest csv", "data/photos", photos),
        ("ray-wsss ingest coco --images val2017", "data/coco_val", SCENES),
    ):
        assert main([*_find(beginning).words[1:]]) == 0
        assert DatasetMetadata.load(folder / out).images == images
    assert main([*_find("ray-wsss split").words[1:]]) == 0
    parts = [DatasetMetadata.load(folder / "data" / part).images for part in ("train", "val")]
    assert sum(parts) == photos
    assert parts[0] > parts[1] > 0


def test_completion_is_written_where_bash_looks(tmp_path: Path) -> None:
    (block,) = [text for text in blocks_of(ROOT / "docs" / "install.md", "") if "completion bash" in text]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": programs}
    subprocess.run(["bash", "-ec", block], check=True, env=environment, cwd=tmp_path)
    script = tmp_path / ".local/share/bash-completion/completions/ray-wsss"
    assert "train-classifier" in script.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_five_commands_of_the_readme(folder: Path) -> None:
    readme = commands_of(ROOT / "README.md")
    first = next(k for k, command in enumerate(readme) if "ingest folder" in command.text)
    five = readme[first : first + 5]
    assert [command.words[1] for command in five] == STEPS
    afterwards = commands_of(ROOT / "docs" / "own_images.md")[-3:]
    assert [command.words[1] for command in afterwards] == ["predict", "export", "report"]
    for command in (*five, *afterwards, _find("ray-wsss export voc")):
        assert main([*command.words[1:]]) == 0, str(command)
    assert len(list((folder / "runs" / "predictions" / "masks").rglob("*.png"))) >= SCENES
    assert (folder / "runs" / "report.html").is_file()
    assert (folder / "exports" / "voc" / "labelmap.txt").is_file()
