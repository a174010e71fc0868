"""Image files to arrays and back; a file that can't be decoded in full raises ``ImageError``.

Every image becomes (H, W, 3) uint8 RGB by rules that depend on its bytes alone:

- 16-bit values become 8-bit by keeping the high byte (Pillow does the same to 16-bit colour). The scale is
  that of the file format and not of the content, so a dark picture stays dark. `image_files.convert` has
  other scales, and is for people's files; what it makes of them needs no rule but these.
- Transparent pixels are composited on white. The colour stored under them is arbitrary (a cut-out often
  keeps its old background there), and annotators most likely saw white.
- Only the first frame of an animation or a multi-page file is read.
- EXIF orientation is applied only as the ``orientation`` argument says, so that decoding is reproducible.
  Pillow itself turns a TIFF upright while loading it, so a TIFF is reported with orientation 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ray_wsss.data.image_files.opening import DECODER_ERRORS, ImageError, load_image, open_image, quiet
from ray_wsss.label_format import MAX_BYTE_CLASSES, LabelMap, label_format

T = TypeVar("T", bound=np.generic)
_DEPTH_AT = 24
"""Position of the byte of every PNG that is its bit depth."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Height and width in pixels as stored, and the EXIF orientation 1..8 (1 if there is none)."""

    height: int
    width: int
    exif_orientation: int


def decode_image(data: bytes, orientation: int = 1) -> NDArray[np.uint8]:
    """Decode an image to (H, W, 3) uint8 RGB, turned by the EXIF ``orientation`` 1..8 (1: as stored).

    Raises:
        ImageError: the image is empty, truncated, corrupt, of an unsupported kind, or above ``MAX_PIXELS``.
    """
    image = load_image(data)
    try:
        pixels = _rgb(image)
    except DECODER_ERRORS as error:
        raise ImageError(f"{image.mode} pixels can't be converted to RGB ({error})") from error
    return apply_orientation(pixels, orientation)


def probe_image(data: bytes) -> ImageInfo:
    """Read the size and orientation from the header alone. Raises ImageError as ``decode_image`` does."""
    image = open_image(data)
    orientation: object = None
    if image.format != "TIFF":
        with quiet():
            try:
                # The base class's method: PngImageFile's own decodes the pixels if it finds no EXIF chunk.
                orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
            except DECODER_ERRORS:
                orientation = None  # unreadable EXIF: viewers show such pictures as stored
    if not (isinstance(orientation, int) and 1 <= orientation <= 8):
        orientation = 1
    return ImageInfo(image.height, image.width, orientation)


def choose_orientation(info: ImageInfo, stated_hw: tuple[int, int] | None) -> int:
    """EXIF orientation to decode an image with, given the (height, width) that its annotations state, if any.

    EXIF is applied unless only the pixels as stored have the stated size. If both ways have it (square,
    180 degrees, mirrored), EXIF is applied, because annotation tools show pictures upright and detectron2
    reads COCO files that way.

    Raises:
        ImageError: the image has the stated size neither way.
    """
    stored_hw = (info.height, info.width)
    upright_hw = stored_hw[::-1] if info.exif_orientation >= 5 else stored_hw
    if stated_hw is None or upright_hw == stated_hw:
        return info.exif_orientation
    if stored_hw == stated_hw:
        return 1
    raise ImageError(
        f"the image is {info.width}x{info.height} pixels, its annotations state {stated_hw[1]}x{stated_hw[0]}"
    )


def apply_orientation(pixels: NDArray[T], orientation: int) -> NDArray[T]:
    """Turn pixels (H, W, ...) upright by the EXIF ``orientation``, into a contiguous array.

    Raises:
        ValueError: ``orientation`` is not 1 to 8.
    """
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    if orientation not in turned:
        raise ValueError(f"orientation is {orientation}; expected an EXIF orientation from 1 to 8")
    return np.ascontiguousarray(turned[orientation](pixels))


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a loaded image to (H, W, 3) uint8 RGB."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("integer pixels outside 0 to 65535")
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return np.array(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba))[..., :3]
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_mask(png: bytes, num_classes: int = MAX_BYTE_CLASSES) -> LabelMap:
    """Decode a palette or grey PNG to its label map (H, W): palette indices or grey values.

    Args:
        num_classes: number of classes, which decides the type of the result (`label_format`). A PNG of up to
            8 bits also serves for more than 254 classes, as long as it doesn't hold 255, which could mean
            either a class or ignore.

    Raises:
        ImageError: the PNG is incomplete, in colour, or has labels that don't fit.
    """
    form, labels = label_format(num_classes), decode_mask_values(png)
    if labels.max() > form.ignore:
        raise ImageError(f"the mask holds label {labels.max()}; expected labels from 0 to {form.ignore}")
    labels = labels.astype(form.dtype)
    if png[_DEPTH_AT] <= 8 and form.dtype != np.uint8 and (labels == 255).any():
        raise ImageError(
            f"the mask holds 255 in 8 bits, which may mean ignored pixels or the 255th of {num_classes} "
            "classes; expected a PNG of 16-bit grey"
        )
    return labels


def decode_mask_values(png: bytes) -> NDArray[np.uint16]:
    """Decode a palette or grey PNG to its values (H, W): palette indices or grey values, whatever they mean.

    Raises:
        ImageError: the PNG is incomplete, or in colour.
    """
    image = load_image(png, ("PNG",))
    if image.mode not in ("P", "L", "1", "I", "I;16", "I;16B"):
        raise ImageError(f"the mask's pixels are {image.mode}; expected a palette or grey PNG")
    labels = np.array(image)
    # Pillow stretches 2- and 4-bit grey (not palettes) to 0..255.
    stretch = {2: 85, 4: 17}.get(png[_DEPTH_AT], 1) if image.mode == "L" else 1
    return (labels // stretch).astype(np.uint16)


def decode_mask_colours(png: bytes) -> tuple[NDArray[np.uint8], bool] | None:
    """Decode the colours of a palette or RGB PNG to (H, W, 3) uint8, and tell whether it has a palette.

    Transparency is left out, since editors make the background transparent. Returns None for a grey PNG.

    Raises:
        ImageError: the PNG is incomplete.
    """
    image = load_image(png, ("PNG",))
    if image.mode not in ("P", "RGB", "RGBA"):
        return None
    if image.mode != "P":
        return np.array(image)[..., :3], False
    palette = np.zeros((256, 3), np.uint8)
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(colours)] = colours
    return palette[np.array(image)], True


def describe_labels(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Labels in masks of `encode_mask`: index, name, colour as [red, green, blue]; background is first."""
    colours = voc_palette(1 + len(class_names)).tolist()
    names = ("background", *class_names)
    return [{"index": k, "name": name, "colour": colours[k]} for k, name in enumerate(names)]


def encode_mask(mask: LabelMap) -> bytes:
    """Encode a label map (H, W) as a PNG.

    uint8 gets VOC's palette, so that viewers show it in colour. uint16 becomes 16-bit grey: a PNG's palette
    has 256 entries at most.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"the mask is {mask.dtype} of shape {mask.shape}; expected uint8 or uint16 (H, W)")
    if mask.dtype == np.uint16:
        return encode_segments(mask)
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_segments(png: bytes) -> NDArray[np.int32]:
    """Decode a PNG of `encode_segments` to an (H, W) int32 segment map.

    Raises:
        ImageError: the PNG is incomplete, or not 16-bit grey.
    """
    image = load_image(png, ("PNG",))
    if image.mode != "I;16":
        raise ImageError(f"the segment map's pixels are {image.mode}; expected a PNG of 16-bit grey")
    return np.asarray(image).astype(np.int32)


def encode_segments(segments: NDArray[np.integer]) -> bytes:
    """Encode an (H, W) segment map of any integer type, ids 0 to 65535, as a 16-bit grey PNG."""
    if segments.ndim != 2 or not np.issubdtype(segments.dtype, np.integer):
        found = f"{segments.dtype} of shape {segments.shape}"
        raise ValueError(f"the segments are {found}; expected integers (H, W)")
    if segments.size and (segments.min() < 0 or segments.max() > 0xFFFF):
        raise ValueError(f"segment ids span {segments.min()}..{segments.max()}; expected 0..65535")
    buffer = BytesIO()
    Image.fromarray(segments.astype(np.uint16)).save(buffer, format="PNG")
    return buffer.getvalue()


def voc_palette(count: int = 256) -> NDArray[np.uint8]:
    """VOC's colour map, (count, 3) uint8 RGB: a label's bits go in turn to red, green and blue.

    VOC's own has 256 colours. The rule gives each of 2**24 labels a colour of its own.
    """
    labels = np.arange(count)
    palette = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette
