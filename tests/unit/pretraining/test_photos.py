"""Reading photographs with masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from ray_wsss.errors import UserError
from ray_wsss.pretraining.photos import (
    RESEARCH_ONLY,
    Photo,
    read_coco,
    read_photos,
    split_held_out,
    weights,
)


def test_all_sources_are_read(photos: list[Photo]) -> None:
    assert {photo.source for photo in photos} == {"bsds500", "coco", "ecssd"}
    assert all(photo.whole == (photo.source != "bsds500") for photo in photos)


def test_sources_are_left_out(photos_folder: Path) -> None:
    rest = read_photos(photos_folder, ["bsds500", "coco"])
    assert len(rest) == 20
    assert {photo.source for photo in rest} == {"ecssd"}
    free = read_photos(photos_folder, RESEARCH_ONLY)  # most of which the folder lacks
    assert {photo.source for photo in free} == {"coco", "ecssd"}
    with pytest.raises(UserError, match="has no source bsds; expected one of bsds500, ecssd, coco"):
        read_photos(photos_folder, ["bsds"])


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no photographs to train on; expected photos_masks"):
        read_photos(tmp_path)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode
def test_masks_are_those_of_pycocotools(genuine_data: Path) -> None:
    path = genuine_data / "coco" / "annotations" / "instances_val.json"
    coco = COCO(str(path))
    for photo in list(read_coco("coco", path))[:4]:
        (image_id,) = (i for i, image in coco.imgs.items() if image["file_name"] == photo.path.name)
        annotations = coco.loadAnns(coco.getAnnIds(image_id, iscrowd=False))
        assert photo.image.shape[:2] == photo.size_hw
        for at, annotation in enumerate(annotations):
            expected = coco.annToMask(annotation)
            assert (photo.mask(at) == expected).all()
            assert photo.areas[at] == expected.sum()
            assert photo.categories[at] == annotation["category_id"]


def test_crowds_are_left_out_and_bands_are_read(tmp_path: Path) -> None:
    picture = Image.new("L", (40, 30))
    ImageDraw.Draw(picture).rectangle((4, 5, 20, 22), fill=1)
    runs = [0, 300, 900]  # the first ten columns are unknown
    path = tmp_path / "annotations" / "some.json"
    path.parent.mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    box = [4, 5, 20, 5, 20, 22, 4, 22]
    band = {"size": [30, 40], "counts": runs}
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [box], "ignore_segmentation": band},
        {"id": 2, "image_id": 7, "category_id": 1, "segmentation": band, "iscrowd": 1},
    ]
    image = {"id": 7, "file_name": "a.png", "height": 30, "width": 40}
    path.write_text(json.dumps({"info": {}, "images": [image], "annotations": annotations}))
    (photo,) = read_coco("some", path)
    assert len(photo.rles) == 1
    assert photo.ignored(0)[:, :10].all()
    assert not photo.ignored(0)[:, 10:].any()


def test_one_in_twenty_of_each_source_is_held_out(photos: list[Photo]) -> None:
    kept, held_out = split_held_out(photos)
    assert sorted(photo.source for photo in held_out) == ["bsds500", "coco", "ecssd"]
    assert len(kept) + len(held_out) == len(photos)
    assert not {photo.path for photo in kept} & {photo.path for photo in held_out}


def test_coco_is_chosen_most_often(photos: list[Photo]) -> None:
    chance = weights(photos)
    assert np.isclose(chance.sum(), 1)
    sources = np.array([photo.source for photo in photos])
    of = {source: chance[sources == source].sum() for source in ("coco", "ecssd", "bsds500")}
    assert np.isclose(of["coco"], 4 / 1.5 * of["ecssd"])
