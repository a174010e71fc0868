"""YOLO's segmentation data sets, which Ultralytics and supervision read.

OUT/images/SPLIT/NAME.jpg
OUT/labels/SPLIT/NAME.txt    a line per instance: class, then x and y of each corner in [0, 1]
OUT/data.yaml                class names and image folders
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_wsss.export.files import write_once, write_picture, write_text
from ray_wsss.export.outlines import centre_ring, join_rings
from ray_wsss.export.record import ExportedImage, Instance, find_parts

_FROM_CENTRE = 0.25
"""Offset of written corners from pixel indices, in pixels. Readers multiply by the image's size, then round
(supervision) or truncate (Ultralytics). With a quarter pixel added, both find the index."""


class YoloFormat:
    """Writes YOLO segmentation. An instance is one polygon. The parts of an annotated object that are not
    connected are joined by cuts, as Ultralytics joins those of COCO; readers paint the cuts a pixel wide. An
    image without instances gets an empty file."""

    def __init__(
        self, out: Path, class_names: Sequence[str], *, split: str, skip_images: bool = False
    ) -> None:
        self.out, self.class_names, self.split, self.skip_images = out, class_names, split, skip_images

    def add(self, image: ExportedImage) -> None:
        write_picture(self.out / "images" / self.split, image, skip=self.skip_images)
        lines = "".join(f"{_line(instance, image.image_hw)}\n" for instance in image.instances)
        write_once(self.out / "labels" / self.split / f"{image.name}.txt", lines.encode("ascii"))

    def finish(self) -> None:
        folder = f"images/{self.split}"
        names = [f"  {k}: {json.dumps(name)}" for k, name in enumerate(self.class_names)]
        comment = "# Trainers need train and val. To validate on other images, point val to their export."
        write_text(self.out / "data.yaml", [comment, f"train: {folder}", f"val: {folder}", "names:", *names])


def _line(instance: Instance, image_hw: tuple[int, int]) -> str:
    height, width = image_hw
    parts = sorted(find_parts(instance), key=lambda part: -part.area)
    rings = [centre_ring(part.crop) + np.array([part.left, part.top]) for part in parts]
    corners = join_rings(rings)
    # Readers take one or two corners (two or four numbers) for something other than a polygon.
    corners = corners.tolist() if len(corners) > 2 else (corners.tolist() * 3)[:3]
    numbers = [f"{(x + _FROM_CENTRE) / width:.7f} {(y + _FROM_CENTRE) / height:.7f}" for x, y in corners]
    return " ".join([str(instance.class_index), *numbers])
