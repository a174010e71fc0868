"""A plain folder of masks for viewing, or for any program that reads PNG.

OUT/masks/NAME.png      palette PNG in VOC's colours: 0 background, class k as k + 1, 255 ignore;
                        above 254 classes, PNG of 16-bit grey with 65,535 as ignore
OUT/overlays/NAME.jpg   the image with its classes painted over it
OUT/classes.json        index in the masks, name and colour of every class
"""

from collections.abc import Sequence
from pathlib import Path

from ray_wsss.data.images import decode_image, describe_labels, voc_palette
from ray_wsss.export.files import encode_jpeg, write_mask, write_once
from ray_wsss.export.record import ExportedImage
from ray_wsss.figures.overview import paint_labels
from ray_wsss.storage import write_json


class FolderFormat:
    """Writes masks, and overlays unless ``skip_images``."""

    def __init__(self, out: Path, class_names: Sequence[str], *, skip_images: bool = False) -> None:
        self.out, self.class_names, self.skip_images = out, class_names, skip_images
        self.palette = voc_palette(1 + len(class_names))

    def add(self, image: ExportedImage) -> None:
        write_mask(self.out / "masks" / f"{image.name}.png", image.label_map)
        if not self.skip_images:
            pixels = decode_image(image.data, image.orientation)
            painted = encode_jpeg(paint_labels(pixels, image.label_map, self.palette), 90)
            write_once(self.out / "overlays" / f"{image.name}.jpg", painted)

    def finish(self) -> None:
        write_json(describe_labels(self.class_names), self.out / "classes.json", ascii_only=True)
