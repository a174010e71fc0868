"""Labels that are hard to export: names that clash or climb, turned pictures, holes, specks, errors."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from label_runs import write_labels
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.cli import main
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import encode_mask
from ray_wsss.data.schema import IMAGE_SCHEMA, DatasetMetadata, write_table_atomically
from ray_wsss.stages.label import LABEL_SCHEMA

CLASSES = ("cat", "traffic light", "Ünïcode: <x> & 'y'")
LABEL_ERROR = "truncated JPEG (as a test has it)"


@dataclass
class Labelled:
    """A data set, its labels, and what they hold."""

    dataset: Path
    labels: Path
    label_maps: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    pixels: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """As the labels see the image: upright, transparency on white."""


def encoded(pixels: NDArray[np.uint8], kind: str, exif: int | None = None, **options: Any) -> bytes:
    """An image file, with an EXIF orientation on request."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if exif is not None:
        tags = Image.Exif()
        tags[0x0112] = exif
        options["exif"] = tags
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hard_label_map(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A ring with an island in it, a box, specks that touch at corners, and ignored pixels."""
    y, x = np.mgrid[:height, :width]
    label_map = np.zeros((height, width), np.uint8)
    from_centre = np.hypot(y - height / 2, (x - width / 2) * height / width)
    label_map[from_centre < 0.42 * height] = 1
    label_map[from_centre < 0.25 * height] = 0
    label_map[from_centre < 0.1 * height] = 1
    label_map[: height // 5, : width // 3] = 2
    specks = rng.random((height, width)) < 0.03
    label_map[specks] = rng.integers(0, 4, specks.sum())
    label_map[-3:, -4:] = 255
    label_map[0, -1] = 3
    return label_map


def _segments(label_map: NDArray[np.uint8]) -> list[dict[str, Any]]:
    segments = []
    for label in (1, 2, 3):
        mask = label_map == label
        ys, xs = np.nonzero(mask)
        points = [[float(xs[0]) + 0.5, float(ys[0]) + 0.5]] if len(xs) else []
        segment = {
            "class_index": label - 1,
            "points_xy": points,
            "sam_score": 1 - label / 10,
            "cam_mean": 0.5,
        }
        rle = encode_rle(mask)["counts"]
        segments.append(segment | {"stability_score": 0.75, "area": int(mask.sum()), "rle": rle})
    return segments


def _pictures(rng: np.random.Generator) -> dict[str, tuple[bytes, int, NDArray[np.uint8]]]:
    """By image id: file, orientation, and the pixels that are seen."""

    def plain(kind: str, height: int = 40, width: int = 56, **options: Any) -> Any:
        pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        data = encoded(pixels, kind, **options)
        return data, 1, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    turned, _, stored = plain("JPEG", exif=6, quality=95)
    ignored, _, as_stored = plain("JPEG", exif=8)
    return {
        "a/b.jpg": plain("JPEG"),
        "a_b.jpg": plain("JPEG", 33, 47),
        "../../escape.jpg": plain("JPEG"),
        "/etc/passwd": plain("PNG"),
        "Tom.jpg": plain("JPEG"),
        "tom.jpg": plain("JPEG"),
        "Größe 中文.png": plain("PNG"),
        "long" * 80: plain("BMP"),
        "scan.tif": plain("TIFF"),
        "turned.jpg": (turned, 6, np.ascontiguousarray(np.rot90(stored, -1))),
        "labelled as stored.jpg": (ignored, 1, as_stored),
        "empty.jpg": plain("JPEG"),
        "...": plain("WEBP", lossless=True),
    }


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """13 good images of which one has no label at all, and one that labelling failed on."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("labelled")
    result = Labelled(folder / "dataset", folder / "labels")
    images, labels = [], []
    for image_id, (data, orientation, pixels) in _pictures(rng).items():
        height, width = pixels.shape[:2]
        label_map = hard_label_map(rng, height, width)
        label_map[...] = 0 if image_id == "empty.jpg" else label_map
        result.label_maps[image_id], result.pixels[image_id] = label_map, pixels
        size = {"image_id": image_id, "height": height, "width": width}
        images.append(size | {"image": data, "orientation": orientation, "image_labels": [], "mask": None})
        labels.append(size | {"pseudo_label": encode_mask(label_map), "segments": _segments(label_map)})
    images.insert(3, images[0] | {"image_id": "broken.jpg"})
    labels.insert(3, {"image_id": "broken.jpg", "error": LABEL_ERROR})
    write_table_atomically(
        pa.Table.from_pylist(images, schema=IMAGE_SCHEMA), result.dataset / "shards" / "part-00000.parquet"
    )
    DatasetMetadata(
        class_names=CLASSES, source="csv", images=len(images), unlabelled=0, errors=0, has_masks=False
    ).save(result.dataset)
    write_labels(labels, result.labels, {}, LABEL_SCHEMA)
    return result


@pytest.fixture
def export(labelled: Labelled, tmp_path: Path) -> Callable[..., Path]:
    """Runs an export of the labels from the command line; returns its folder."""

    def run(kind: str, *flags: object, out: str = "export") -> Path:
        inputs = ["--labels", labelled.labels, "--dataset", labelled.dataset, "--out", tmp_path / out]
        assert main([str(word) for word in ("export", kind, *inputs, *flags)]) == 0
        return tmp_path / out

    return run


@pytest.fixture
def names_of() -> Callable[[Path], dict[str, str]]:
    """Reads an export's names.csv: image id to name."""

    def read(out: Path) -> dict[str, str]:
        with (out / "names.csv").open(encoding="utf-8", newline="") as file:
            return {row["image_id"]: row["name"] for row in csv.DictReader(file)}

    return read
