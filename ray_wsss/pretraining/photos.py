"""Photographs with masks in COCO's format, in memory: what a promptable segmenter is trained on."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ray_wsss.data.coco.masks import Rle, encode_rle, fill_runs, polygon_runs, read_polygons, read_rle
from ray_wsss.errors import UserError

HELD_OUT_EVERY = 20
"""One photograph in so many of each source is kept for measuring while the training runs."""
PARTS = frozenset(
    ("facade", "houses", "nails", "helmets_vests", "face_masks", "feet", "car_interior", "baby_heads")
)
"""Sources whose instances are parts of larger things: windows of a house, helmets of a person."""
OBJECTS = frozenset(
    """
    ecssd human_seg coco_person weizmann_horse wild_animals fish balloons bottles dogs pets dog_cat pugs
    feral_cats fire_trucks mixed_objects ouds
    """.split()  # noqa: SIM905
)
"""Sources of photographs of single objects, carefully drawn."""

RESEARCH_ONLY = ("ade20k_sample", "bsds500", "camvid", "cwfid", "labelmefacade", "pets")
"""Sources whose terms allow research alone."""


@dataclass(frozen=True)
class Photo:
    """A photograph and its masks, compressed as they are in COCO's format."""

    source: str
    path: Path
    size_hw: tuple[int, int]
    rles: list[Rle]
    boxes: NDArray[np.float32]
    """Boxes (M, 4) of the masks: x0, y0, x1, y1 in pixels."""
    areas: NDArray[np.float32]
    """Pixels (M,) of each mask."""
    categories: NDArray[np.int64]
    """Category (M,) of each mask, as the source numbers them."""
    whole: bool
    """True: the masks are whole objects, rather than parts or segments."""
    ignore: list[Rle | None]
    """Band of each mask that is not scored; None where there is none."""

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """The photograph (H, W, 3), RGB; decoded once."""
        with Image.open(self.path) as image:
            return np.asarray(image.convert("RGB"))

    def mask(self, at: int) -> NDArray[np.bool_]:
        """Mask ``at`` (H, W)."""
        return _decode(self.rles[at])

    def ignored(self, at: int) -> NDArray[np.bool_]:
        """Pixels (H, W) around mask ``at`` that nobody knows, and that are not scored."""
        band = self.ignore[at]
        return np.zeros(self.size_hw, np.bool_) if band is None else _decode(band)


def read_photos(folder: Path, without: Collection[str] = ()) -> list[Photo]:
    """Photographs of ``photos_masks`` and of COCO's training part below a folder.

    Args:
        folder: has ``photos_masks/annotations/*.json``, ``photos_masks/images``,
            ``coco/annotations/instances_train.json`` and ``coco/images``.
        without: names of sources to leave out; those of `RESEARCH_ONLY` need not be there.

    Raises:
        UserError: the folder has another layout, or no such source.
    """
    files = [(path.stem, path) for path in sorted((folder / "photos_masks" / "annotations").glob("*.json"))]
    files.append(("coco", folder / "coco" / "annotations" / "instances_train.json"))
    if len(files) == 1 or not files[-1][1].is_file():
        raise UserError(
            f"{folder} has no photographs to train on; expected photos_masks/annotations/*.json and "
            "coco/annotations/instances_train.json in it"
        )
    if unknown := sorted(set(without) - set(RESEARCH_ONLY) - {name for name, _ in files}):
        known = ", ".join(name for name, _ in files)
        raise UserError(f"{folder} has no source {unknown[0]}; expected one of {known}")
    return [photo for name, path in files if name not in without for photo in read_coco(name, path)]


def read_coco(source: str, annotations: Path) -> Iterator[Photo]:
    """Photographs of a file in COCO's format that have a mask; its images are in ``../images``.

    Raises:
        UserError: the file can't be read.
    """
    try:
        content = json.loads(annotations.read_text("utf-8"))
        images, annotated = content["images"], content["annotations"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{annotations} can't be read ({error!r}); expected annotations in COCO's format"
        ) from None
    of_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in annotated:
        if not annotation.get("iscrowd"):
            of_image.setdefault(annotation["image_id"], []).append(annotation)
    whole = source not in PARTS and content.get("info", {}).get("kind", "instance") == "instance"
    for image in images:
        size_hw = (image["height"], image["width"])
        drawn = [
            (a["category_id"], _compress(a["segmentation"], size_hw), a.get("ignore_segmentation"))
            for a in of_image.get(image["id"], [])
        ]
        drawn = [one for one in drawn if _areas([one[1]])[0] > 0]
        if not drawn:
            continue
        categories, rles, ignore = zip(*drawn)
        boxes = np.asarray(coco_mask.toBbox(_with_bytes(rles)), np.float32)
        boxes[:, 2:] += boxes[:, :2]
        yield Photo(
            source,
            annotations.parents[1] / "images" / image["file_name"],
            size_hw,
            list(rles),
            boxes,
            _areas(rles),
            np.array(categories),
            whole,
            [None if band is None else _compress(band, size_hw) for band in ignore],
        )


def split_held_out(photos: list[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Photographs for training, and those kept for measuring: every 20th of each source."""
    seen: dict[str, int] = {}
    parts: tuple[list[Photo], list[Photo]] = ([], [])
    for photo in photos:
        at = seen[photo.source] = seen.get(photo.source, 0) + 1
        parts[at % HELD_OUT_EVERY == 0].append(photo)
    return parts


def weights(photos: list[Photo]) -> NDArray[np.float64]:
    """Probability with which each photograph is chosen: COCO's and those of whole objects more often."""
    by_source = {"coco": 4.0, "bsds500": 1.5} | dict.fromkeys(OBJECTS, 1.5)
    values = np.array([by_source.get(photo.source, 0.6) for photo in photos])
    return values / values.sum()


def _compress(segmentation: Any, size_hw: tuple[int, int]) -> Rle:
    """Polygons, or an RLE, as a compressed RLE."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return {"size": segmentation["size"], "counts": segmentation["counts"]}
    if isinstance(segmentation, dict):
        return encode_rle(fill_runs(read_rle(segmentation, *size_hw), *size_hw))
    polygons, _ = read_polygons(segmentation)
    return encode_rle(fill_runs(polygon_runs(polygons, *size_hw), *size_hw))


def _decode(rle: Rle) -> NDArray[np.bool_]:
    height, width = rle["size"]
    return fill_runs(read_rle(rle, height, width), height, width)


def _areas(rles: Sequence[Rle]) -> NDArray[np.float32]:
    return np.asarray(coco_mask.area(_with_bytes(rles)), np.float32)


def _with_bytes(rles: Sequence[Rle]) -> Any:
    """RLEs as pycocotools takes them."""
    return [{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in rles]
