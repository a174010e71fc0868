"""Pictures of the report, small enough that thousands of them fit into one file.

Each is a data URL. A layer over an image is a palette PNG of a few hundred bytes, with the proportions of the
image's thumbnail, and transparent where it has no content.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.figures.overview import COLOURS
from ray_wsss.label_format import LabelMap, ignore_label, label_format

_HEAT_LEVELS = 32
_HEAT_SIDE_PX = 96
"""Long side of a CAM's picture. CAMs are smooth, so browsers can scale them up without visible loss."""
_WEBP_QUALITY = 78
_GOLDEN = 0.6180339887
"""Step between hues: multiples of the golden ratio, modulo 1, stay far apart for long."""


def report_palette(class_count: int) -> NDArray[np.uint8]:
    """RGB colours (1 + class_count, 3) of background and classes.

    They are the overview's if those suffice. Otherwise they are generated: bright, since VOC's dark colours
    are hard to see on photographs, and far apart for neighbouring classes.
    """
    if class_count < len(COLOURS):
        return COLOURS[: 1 + class_count]
    k = np.arange(class_count)
    hsv = np.stack([k * _GOLDEN % 1, np.array([0.9, 0.55])[k % 2], np.array([1, 0.78, 0.9])[k % 3]], -1)
    return np.concatenate([COLOURS[:1], np.rint(255 * hsv_to_rgb(hsv)).astype(np.uint8)])


def thumbnail_hw(image_hw: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Height and width of a thumbnail; those of the image if no side is longer than ``side_px``."""
    scale = min(1.0, side_px / max(image_hw))
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def encode_photo(pixels: NDArray[np.uint8], side_px: int) -> str:
    """An image (H, W, 3) RGB as a WebP thumbnail."""
    height, width = thumbnail_hw((pixels.shape[0], pixels.shape[1]), side_px)
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
    return _as_url(small, "WEBP", quality=_WEBP_QUALITY)


def encode_heat(cam: NDArray[np.float32]) -> str:
    """A CAM (h, w) in [0, 1] as PNG: dark and transparent at 0, bright and opaque at 1."""
    height, width = thumbnail_hw((cam.shape[0], cam.shape[1]), _HEAT_SIDE_PX)
    small = Image.fromarray(cam.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    levels = np.clip(np.asarray(small) * _HEAT_LEVELS, 0, _HEAT_LEVELS - 1).astype(np.uint8)
    share = np.arange(_HEAT_LEVELS) / (_HEAT_LEVELS - 1)
    colours = (colormaps["inferno"](share)[:, :3] * 255).astype(np.uint8)
    return _palette_png(levels, colours, (np.minimum(1, share * 1.6) * 255).astype(np.uint8))


def encode_labels(label_map: LabelMap, palette: NDArray[np.uint8], side_px: int) -> str:
    """A label map (H, W) as PNG in the classes' colours: background is transparent, ignored pixels white.

    A PNG's palette has room for 256 of the labels in the map; of more, the highest share a colour.
    """
    small, ignore = _nearest(label_map, side_px), ignore_label(label_map)
    colours = np.concatenate([palette, [[255, 255, 255]]]).astype(np.uint8)
    labels = np.where(small == ignore, len(palette), np.minimum(small, len(palette) - 1))
    if len(colours) > 256:
        present = np.union1d([0], labels)
        labels, colours = np.searchsorted(present, labels).clip(max=255), colours[present[:256]]
    alpha = np.full(len(colours), 255, np.uint8)
    alpha[0] = 0
    used = int(labels.max(initial=0)) + 1
    return _palette_png(labels.astype(np.uint8), colours[:used], alpha[:used])


def encode_outlines(
    masks: Sequence[tuple[int, NDArray[np.bool_]]], palette: NDArray[np.uint8], side_px: int
) -> str:
    """Outlines of one or more (class index, mask (H, W)) as PNG; where they overlap, the last is on top."""
    drawn: LabelMap | None = None
    form = label_format(len(palette) - 1)
    for class_index, mask in masks:
        small = _nearest(mask.astype(np.uint8), side_px).astype(bool)
        drawn = np.zeros(small.shape, form.dtype) if drawn is None else drawn
        drawn[_outline(small, max(1, max(small.shape) // 128))] = class_index + 1
    assert drawn is not None
    return encode_labels(drawn, palette, side_px)


def _outline(mask: NDArray[np.bool_], width_px: int) -> NDArray[np.bool_]:
    """Pixels of a mask that are at most ``width_px`` steps up, down, left or right from its outside."""
    inside = mask
    for _ in range(width_px):
        padded = np.pad(inside, 1)
        around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        inside = inside & around
    return mask & ~inside


def _nearest(labels: LabelMap, side_px: int) -> LabelMap:
    height, width = thumbnail_hw((labels.shape[0], labels.shape[1]), side_px)
    if (height, width) == labels.shape:
        return labels
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def _palette_png(indices: NDArray[np.uint8], colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> str:
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    return _as_url(image, "PNG", transparency=alpha.tobytes(), optimize=True)


def _as_url(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
