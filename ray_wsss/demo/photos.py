"""The demo's data sets of people's own photographs, and where those are."""

import logging
import random
from dataclasses import replace
from pathlib import Path

from ray_wsss.cluster.stages.ingest import ingest_once
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.data.coco import read_coco
from ray_wsss.data.coco.values import read_json
from ray_wsss.data.folder import read_folder
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.data.source import Source
from ray_wsss.demo.settings import DemoSettings
from ray_wsss.errors import UserError
from ray_wsss.runs.dependencies import warn_of_near_duplicates
from ray_wsss.stages.split import split_here

log = logging.getLogger(__name__)

MOST_PHOTOS = 300
"""Photographs of a demo, at most: with so many it takes five minutes on two cores (docs/results.md)."""
_HELD_OUT = 0.25
"""Share of the photographs that nothing is trained on."""


def find_coco(photos: Path) -> tuple[Path, Path] | None:
    """Folder of the images and COCO's JSON at ``photos``; None if it has a folder for each class instead.

    Args:
        photos: a JSON file, or a folder with one in it or in its folder ``annotations``. The images lie in a
            folder of the JSON, in the one above it, or in a folder directly in one of these.

    Raises:
        UserError: there are several JSON files, or no folder has the images.
    """
    if not photos.exists():
        raise UserError(
            f"--photos {photos} does not exist; expected a folder, or a JSON file in COCO's format"
        )
    found = (
        [photos] if photos.is_file() else sorted([*photos.glob("*.json"), *photos.glob("annotations/*.json")])
    )
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise UserError(
            f"--photos {photos} has {len(found)} JSON files ({names}); expected one, or the path of one"
        )
    return _folder_of_images(found[0]), found[0]


def _folder_of_images(annotations: Path) -> Path:
    content = read_json(annotations, "expected COCO's instances")
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    name = first.get("file_name") if isinstance(first, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{annotations} lists no image with a file_name; expected COCO's instances")
    near = [annotations.absolute().parent, annotations.absolute().parent.parent]
    below = [path for folder in near for path in sorted(folder.iterdir()) if path.is_dir()]
    folder = next((folder for folder in [*near, *below] if (folder / name).is_file()), None)
    if folder is None:
        raise UserError(f"{name} of {annotations} is in no folder near it; expected the images beside it")
    return folder


def read_photos(photos: Path, seed: int) -> Source:
    """Photographs and their labels, `MOST_PHOTOS` of them drawn at random if there are more.

    Args:
        photos: COCO's JSON or a folder with it (`find_coco`), or a folder with a folder for each class.

    Raises:
        UserError: as `find_coco`, `data.coco.read_coco` and `data.folder.read_folder`.
    """
    coco = find_coco(photos)
    source = read_folder(photos) if coco is None else read_coco(*coco)
    count = len(source.rows)
    if count <= MOST_PHOTOS:
        return source
    log.info("the demo takes %d of %s photographs, drawn at random", MOST_PHOTOS, f"{count:,}")
    drawn = sorted(random.Random(seed).sample(range(count), MOST_PHOTOS))
    return replace(source, rows=[source.rows[at] for at in drawn])


def ingest_photos(source: Source, demo: DemoSettings) -> None:
    """Make the data sets ``train`` and ``held_out`` of photographs, if they are not there.

    Raises:
        UserError: the photographs have changed since, or are too few to divide.
    """
    everything = demo.out / "photos"
    for remark in source.remarks:
        log.info(remark)
    ingest_once(source, out=everything, cluster=None)
    split_here(everything, [demo.train, demo.held_out], [1 - _HELD_OUT, _HELD_OUT], demo.seed)
    warn_of_near_duplicates(demo.held_out, demo.train)


def with_batches_of(recipe: Recipe, train: Path) -> Recipe:
    """``recipe`` with batches no larger than the number of images with known labels in a data set."""
    metadata = DatasetMetadata.load(train)
    most = max(1, metadata.images - metadata.unlabelled)
    sizes = {
        f"{config.section}.batch_size": min(config.batch_size, most)
        for config in (recipe.classifier, recipe.segmenter)
    }
    return override(recipe, sizes)
