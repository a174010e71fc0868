"""Predict a folder of images: one label map per image, as a palette PNG that viewers show in colour, or as
16-bit grey above 254 classes.

OUT/masks/a/b.png      label map of the image a/b.jpg, at its size
OUT/overlays/a/b.jpg   on request: the image with its classes painted in the masks' colours
OUT/masks.json         name of each image -> name of its mask
OUT/classes.json       the labels, their names and colours
OUT/errors.parquet     images that failed, with reasons; absent if none failed

Every file is either complete or absent, so running the stage again makes only missing masks.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.config import PredictConfig
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.image_files.convert import convert_upright
from ray_wsss.data.images import (
    decode_image,
    describe_labels,
    encode_mask,
    voc_palette,
)
from ray_wsss.data.schema import write_errors
from ray_wsss.figures.overview import paint_labels
from ray_wsss.label_format import LabelMap
from ray_wsss.ops.resize import group_by_size, resize_map, shrink
from ray_wsss.ops.tiles import needs_tiles
from ray_wsss.runs.failures import fault_of, reason_of
from ray_wsss.runs.prepared_images import PreparedImage, upright_hw
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.predict import Predictor
from ray_wsss.storage import find_files, printable, replace_atomically, why_unreadable, write_json


def name_masks(images: Sequence[str]) -> dict[str, str]:
    """Name of every image's mask: the name of the image with the suffix .png.

    If several images would share a mask name, such as a.jpg and a.png, .png is appended instead: a.jpg.png
    and a.png.png.
    """
    masks = {image: str(PurePosixPath(image).with_suffix(".png")) for image in images}
    while True:
        uses = Counter(masks.values())
        # An appended name may clash as well: a.jpg.png is also the mask of a.jpg.bmp.
        clashing = [i for i, mask in masks.items() if uses[mask] > 1 and mask != f"{i}.png"]
        if not clashing:
            return masks
        masks |= {image: f"{image}.png" for image in clashing}


@dataclass(frozen=True)
class MaskFolder:
    """Reads and writes the files of one output folder."""

    out: Path
    overlays: bool = False
    """Also write an overlay of each mask on its image."""

    def mask(self, name: str) -> Path:
        """Path of a mask, by its name from `name_masks`."""
        return self.out / "masks" / name

    def overlay(self, name: str) -> Path:
        """Path of the overlay that belongs to the mask ``name``."""
        return (self.out / "overlays" / name).with_suffix(".jpg")

    def claim(self, masks: Mapping[str, str]) -> None:
        """Write to masks.json which mask belongs to which image.

        An image that was added since the last run may change the mask names of other images. Masks and
        overlays under an outdated name are removed, to be made again. Masks of images that were deleted stay.
        """
        path = self.out / "masks.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        owner = {mask: image for image, mask in masks.items()}
        stale = {i: m for i, m in before.items() if masks.get(i, m) != m or owner.get(m, i) != i}
        for name in stale.values():
            self.mask(name).unlink(missing_ok=True)
            self.overlay(name).unlink(missing_ok=True)
        after = {image: mask for image, mask in before.items() if image not in stale} | dict(masks)
        if after != before:
            # ASCII escapes everything: file names may hold bytes that are not UTF-8.
            write_json(after, path, ascii_only=True)

    def missing(self, root: Path, masks: Mapping[str, str]) -> list[tuple[str, str]]:
        """Names (image, mask) of images below ``root`` without a mask, or changed since it was made."""
        changed = find_files(root)
        made = [find_files(self.out / kind) for kind in ("masks", *(["overlays"] if self.overlays else []))]

        def is_done(image: str, mask: str) -> bool:
            names = (mask, str(PurePosixPath(mask).with_suffix(".jpg")))
            files = [found.get(name) for found, name in zip(made, names)]
            since = changed[image].changed_ns if image in changed else float("inf")
            return all(file is not None and file.changed_ns >= since for file in files)

        return [(image, mask) for image, mask in masks.items() if not is_done(image, mask)]

    def write(self, name: str, label_map: LabelMap, pixels: NDArray[np.uint8]) -> None:
        """Write a mask (H, W), and if wanted its overlay (h, w) on the image ``pixels`` (h, w, 3)."""
        if self.overlays:
            palette = voc_palette(int(label_map.max()) + 1)
            small = resize_map(label_map, (pixels.shape[0], pixels.shape[1]))
            with replace_atomically(self.overlay(name)) as temporary:
                painted = Image.fromarray(paint_labels(pixels, small, palette))
                painted.save(temporary, format="JPEG", quality=90)
        with replace_atomically(self.mask(name)) as temporary:
            temporary.write_bytes(encode_mask(label_map))

    def write_classes(self, class_names: Sequence[str]) -> None:
        """Write classes.json: label in the masks, name, and colour (red, green, blue) of each class."""
        write_json(describe_labels(class_names), self.out / "classes.json", ascii_only=True)

    def write_errors(self, failed: Sequence[tuple[str, str]]) -> None:
        """Write errors.parquet, or no file if no image failed."""
        write_errors(sorted(failed), self.out, "image")


class PrepareFiles:
    """Reads and decodes image files and turns them upright by their EXIF orientation, as ingest does.

    Args:
        root: folder that image names are relative to.
        max_side_px: longest side of the images for the segmenter, in pixels; larger ones are scaled down.
        tile_px: side of the tiles in which larger images are predicted; they are neither shrunk nor decoded.
        decode: how images of more than 8 bits or of many channels become RGB; by default `DecodeConfig`.
    """

    def __init__(
        self, root: Path, max_side_px: int, decode: DecodeConfig | None = None, *, tile_px: int | None = None
    ) -> None:
        self.root, self.max_side_px = root.absolute(), max_side_px  # absolute: other processes use it too
        self.decode, self.tile_px = decode, tile_px

    def __call__(self, names: Sequence[str]) -> list[PreparedImage]:
        """One entry per name, in order; an image that can't be read has the reason in ``error``."""
        return [self._prepare(name) for name in names]

    def _prepare(self, name: str) -> PreparedImage:
        image_id = printable(name)
        try:
            data, orientation = convert_upright((self.root / name).read_bytes(), self.decode)
            image_hw = upright_hw(data, orientation)
            if needs_tiles(image_hw, self.tile_px):
                return PreparedImage(
                    image_id=image_id, image_hw=image_hw, encoded=data, orientation=orientation
                )
            pixels = decode_image(data, orientation)
            small = shrink(pixels, self.max_side_px)
            return PreparedImage(image_id=image_id, image_hw=image_hw, pixels=small)
        except OSError as error:
            return PreparedImage(image_id=image_id, error=why_unreadable(error, name))
        except ValueError as error:
            return PreparedImage(image_id=image_id, error=str(error))
        except Exception as error:  # one image must not stop the others
            if fault_of(error) == "set-up":
                raise
            return PreparedImage(image_id=image_id, error=reason_of(error))


class FolderPredictor:
    """Predicts and writes the masks of prepared images, with the segmenter on one device."""

    def __init__(
        self, segmenter: Path, config: PredictConfig, folder: MaskFolder, device: str = "cpu"
    ) -> None:
        self.predictor = Predictor.load(segmenter, config, device)
        self.folder = folder

    def __call__(
        self, masks: Sequence[str], images: Sequence[PreparedImage]
    ) -> tuple[Tally, list[tuple[str, str]]]:
        """Write one mask per image, named by ``masks``.

        Returns:
            Counts and times, and (image_id, reason) of each image that failed.
        """
        failed = [(image.image_id, image.error) for image in images if image.error is not None]
        good = [(n, image, image.pixels) for n, image in zip(masks, images) if image.pixels is not None]
        tally, device = Tally(images=len(good), errors=len(failed)), self.predictor.device
        config, num_labels = self.predictor.config, 1 + len(self.predictor.spec.class_names)
        most_pixels = config.max_batch_pixels(num_labels)
        for group in group_by_size([pixels for *_, pixels in good], config.batch_size, most_pixels):
            names, batch, pixels = zip(*[good[at] for at in group])
            with tally.phase("predict", device):
                label_maps = self.predictor.predict(pixels, [image.image_hw for image in batch])
            with tally.phase("write"):
                for name, label_map, seen in zip(names, label_maps, pixels):
                    self.folder.write(name, label_map, seen)
        for name, image in zip(masks, images):
            if image.encoded is not None:
                failed += self._predict_large(name, image, tally)
        return tally, failed

    def _predict_large(self, name: str, image: PreparedImage, tally: Tally) -> list[tuple[str, str]]:
        """Write the mask of an image in tiles; (image_id, reason) if it fails."""
        try:
            with tally.phase("predict", self.predictor.device):
                pixels = image.decode()
                label_map = self.predictor(pixels)
        except ValueError as error:
            tally.errors += 1
            return [(image.image_id, str(error))]
        tally.images += 1
        with tally.phase("write"):
            self.folder.write(name, label_map, shrink(pixels, self.predictor.config.max_side_px))
        return []
