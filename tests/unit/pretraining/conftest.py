"""A folder of generated photographs with masks, laid out as the job that trains the lite SAM expects."""

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_photos import COLOURS
from PIL import Image
from pycocotools import mask as coco_mask

from ray_wsss.pretraining.photos import Photo, read_photos


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A grey image with rectangles of three colours side by side, and their masks."""
    image = np.full((height, width, 3), 120, np.uint8)
    masks = []
    for at, colour in enumerate(COLOURS):
        left, top = at * width // 3 + rng.integers(2, 8), rng.integers(5, height // 3)
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + height // 2, left : left + width // 4] = 1
        image[mask > 0] = colour
        masks.append(mask)
    return image, masks


def write_source(folder: Path, annotations: Path, count: int, kind: str | None, prefix: str = "") -> None:
    rng = np.random.default_rng(count)
    content = {"info": {"kind": kind} if kind else {}, "images": [], "annotations": [], "categories": []}
    for number in range(count):
        height, width = (int(n) for n in rng.integers(70, 130, 2))
        image, masks = draw(rng, height, width)
        name = f"{prefix}{number:03}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for category, mask in enumerate(masks):
            rle = coco_mask.encode(np.asfortranarray(mask))
            content["annotations"].append(
                {
                    "id": 10 * number + category,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},  # pyright: ignore
                    "iscrowd": 0,
                }
            )
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    images = root / "photos_masks" / "images"
    for source, kind in (("ecssd", "instance"), ("bsds500", "segment")):
        write_source(images, root / "photos_masks" / "annotations" / f"{source}.json", 20, kind, f"{source}/")
    write_source(root / "coco" / "images", root / "coco" / "annotations" / "instances_train.json", 20, None)
    return root


@pytest.fixture(scope="session")
def photos(photos_folder: Path) -> list[Photo]:
    return read_photos(photos_folder)
