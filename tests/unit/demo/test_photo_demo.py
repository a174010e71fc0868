"""Where the demo finds people's photographs, how many it takes, and which it draws."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_wsss.commands.demo import Demo
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.demo.photos import MOST_PHOTOS, find_coco, read_photos, with_batches_of
from ray_wsss.demo.pictures import varied
from ray_wsss.errors import UserError


def save_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def save_coco(path: Path, *names: str) -> Path:
    images = [{"id": k, "file_name": name, "height": 8, "width": 8} for k, name in enumerate(names)]
    annotations = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 4, 4]} for k in range(len(names))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 1, "name": "cat"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.mark.parametrize(
    ("annotations", "image"),
    [
        ("instances.json", "a.png"),
        ("instances.json", "images/a.png"),
        ("annotations/instances.json", "a.png"),
        ("annotations/instances.json", "val2017/a.png"),
    ],
    ids=["beside", "below", "above", "as COCO lays them out"],
)
def test_coco_is_found(tmp_path: Path, annotations: str, image: str) -> None:
    save_image(tmp_path / image)
    path = save_coco(tmp_path / annotations, "a.png")
    for photos in (tmp_path, path):
        found = find_coco(photos)
        assert found is not None
        images, instances = found
        assert (images / "a.png").is_file()
        assert instances == path
        assert read_photos(photos, 0).class_names == ["cat"]


def test_class_folders(tmp_path: Path) -> None:
    for value, name in enumerate(("cat/1.png", "dog/2.png")):
        save_image(tmp_path / name, value)
    assert find_coco(tmp_path) is None
    assert list(read_photos(tmp_path, 0).class_names) == ["cat", "dog"]


def test_what_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none does not exist; expected a folder"):
        find_coco(tmp_path / "none")
    photos = tmp_path / "photos"  # whose parent has no folders of other tests in it
    path = save_coco(photos / "a.json", "lost.png")
    with pytest.raises(UserError, match=r"lost\.png of .*a\.json is in no folder near it"):
        find_coco(photos)
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"a\.json lists no image with a file_name"):
        find_coco(photos)
    save_coco(photos / "annotations" / "b.json", "lost.png")
    with pytest.raises(UserError, match=r"has 2 JSON files \(a\.json, b\.json\); expected one"):
        find_coco(photos)


def test_of_many_photographs_some_are_drawn(tmp_path: Path) -> None:
    save_image(tmp_path / "0.png")
    save_coco(tmp_path / "a.json", *(f"{k}.png" for k in range(MOST_PHOTOS + 100)))
    drawn = [[row.image_id for row in read_photos(tmp_path, seed).rows] for seed in (0, 0, 1)]
    assert len(set(drawn[0])) == len(drawn[0]) == MOST_PHOTOS
    assert drawn[0] == drawn[1] != drawn[2]


def test_batches_are_no_larger_than_the_data_set(dataset: Path, tmp_path: Path) -> None:
    metadata = replace(DatasetMetadata.load(dataset), images=12, unlabelled=3)
    metadata.save(tmp_path)
    recipe = with_batches_of(PRESETS["photos"], tmp_path)
    assert (recipe.classifier.batch_size, recipe.segmenter.batch_size) == (9, 8)
    replace(metadata, images=400).save(tmp_path)
    assert with_batches_of(PRESETS["photos"], tmp_path) == PRESETS["photos"]


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([[0], [0], [1], [0], [2], [1]], [0, 2, 4, 1, 5, 3]),
        ([[0, 1], [1], [], [2, 0], [1, 0]], [0, 3, 1, 4]),
        ([[]], []),
    ],
    ids=["single classes", "several classes", "nothing"],
)
def test_drawn_photographs_vary(labels: list[list[int]], order: list[int]) -> None:
    assert varied(labels) == order


def test_help_says_how_many_are_taken() -> None:
    assert f"more than {MOST_PHOTOS} it takes {MOST_PHOTOS}" in inspect.getsource(Demo)
