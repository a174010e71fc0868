"""Values of images that have more than 8 bits a channel, or other channels than red, green, blue and alpha.

Pillow reduces 16-bit colour to 8 bits, and reads no TIFF of two or of many channels. Those are read with
tifffile and imagecodecs, which are imported when such a file is met.
"""

import logging
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.data.image_files.formats import find_format
from ray_wsss.data.image_files.opening import DECODER_ERRORS, ImageError, check_size, load_image, open_image
from ray_wsss.data.images import apply_orientation, decode_image

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_MOST_BYTES = 4 * 2**30
"""Most bytes of the values of an image."""
_GREY_WHITE, _GREY, _RGB = 0, 1, 2
"""TIFF's photometric interpretations that are read here: grey with 0 as white, grey, and colour."""
_ALPHA = (1, 2)
"""TIFF's kinds of extra samples that are alpha."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Values of an image as its file has them."""

    values: NDArray[Any]
    """(H, W, C) integers or floats, without alpha, turned as Pillow would."""
    is_colour: bool = False
    """Whether the channels are the red, green and blue of one picture, on one scale."""
    alpha: NDArray[np.float32] | None = None
    """(H, W) opacity in [0, 1]."""
    is_plain: bool = True
    """Whether `decode_image` reads the file too, and keeps the high bytes of its values."""
    lost_bits: bool = False
    """Whether the file has 16 bits, but only 8 can be read without the package imagecodecs."""
    pages: int = 1
    """Pages of the file; the values are those of the first."""


def read_samples(data: bytes, *, all_channels: bool = False) -> Samples | None:
    """Read the values of an image; None if it is one of 8 bits that Pillow reads in full.

    Args:
        all_channels: read every TIFF with several channels, and count its alpha as a channel.

    Raises:
        ImageError: the file is damaged, too large, or needs a package that is missing.
    """
    kind = find_format(data)
    if kind == "TIFF":
        found = _read_tiff(data, all_channels)
        if found is not None:
            return found
    if kind == "PNG" and len(data) > 25 and data[24] == 16 and data[25] in (2, 4, 6):
        return _read_deep_png(data)
    return _read_grey(data) if is_deep_grey(open_image(data)) else None


def is_deep_grey(image: Image.Image) -> bool:
    """Whether Pillow keeps all bits of an image's values, which are more than 8."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _read_grey(data: bytes) -> Samples:
    image = load_image(data)
    return Samples(values=np.asarray(image)[..., None], is_plain=image.mode != "F")


def _read_deep_png(data: bytes) -> Samples | None:
    """16-bit colour, or grey with alpha."""
    image = load_image(data)  # raises ImageError for what is damaged
    if "transparency" in image.info:
        return None  # a transparent colour, which Pillow knows how to treat
    try:
        from imagecodecs import png_decode
    except ImportError:
        return Samples(values=decode_image(data), lost_bits=True)
    try:
        values = np.asarray(png_decode(data))
    except DECODER_ERRORS as error:
        raise ImageError(f"corrupt PNG ({error})") from error
    channels = values.shape[2]
    return _split_alpha(values, has_alpha=channels in (2, 4), is_colour=channels >= 3)


def _read_tiff(data: bytes, all_channels: bool) -> Samples | None:
    """Values of the first page; None if Pillow reads all of it."""
    import tifffile

    # It logs what it finds wrong; here that is the reason of an error, or doesn't matter.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(BytesIO(data)) as file:
            page = file.pages.first
            stack = _channels_in_pages(file)
            for_pillow = _opens_in_pillow(data)
            if not _is_needed(page, stack > 1 or not for_pillow, all_channels):
                return None
            _check(page, stack, len(data))
            values = file.series[0].asarray() if stack > 1 else page.asarray()
            axes = "SYX" if stack > 1 else page.axes
            pages = len(file.pages) // stack
            found = _arrange(values, axes, page, pages, all_channels)
            return replace(found, is_plain=found.is_plain and for_pillow)
    except ImageError:
        raise
    except (*DECODER_ERRORS, tifffile.TiffFileError) as error:
        return _read_without(data, error, all_channels)


def _read_without(data: bytes, error: Exception, all_channels: bool) -> Samples | None:
    """What Pillow reads of a TIFF that tifffile could not. Raises ImageError if that is nothing."""
    lacks_package = "imagecodecs" in str(error)
    try:
        if not (lacks_package and all_channels):
            image = load_image(data)
            return (
                None if is_deep_grey(image) else Samples(values=decode_image(data), lost_bits=lacks_package)
            )
    except ImageError as problem:
        if not lacks_package:
            raise problem from error
    raise ImageError("TIFF of a rarer compression; pip install -e '.[deep]' reads it") from error


def _channels_in_pages(file: "TiffFile") -> int:
    """Number of channels, if each is a page (as ImageJ and OME-TIFF write them), else 1."""
    if len(file.pages) == 1 or not (file.is_imagej or file.is_ome):
        return 1
    first = file.series[0]
    return int(first.shape[0]) if first.axes == "CYX" else 1


def _opens_in_pillow(data: bytes) -> bool:
    try:
        open_image(data)
    except ImageError:
        return False
    return True


def _is_needed(page: "TiffPage", by_tifffile_alone: bool, all_channels: bool) -> bool:
    """Whether Pillow wouldn't read all of a page whose kind of pixels is read here."""
    if page.photometric not in (_GREY_WHITE, _GREY, _RGB) or page.dtype is None:
        return False
    colours = page.samplesperpixel - bool(_alpha_of(page))
    few = colours in (1, 3) and not (all_channels and page.samplesperpixel > 1)
    return page.dtype.itemsize > 1 or page.dtype.kind == "i" or by_tifffile_alone or not few


def _alpha_of(page: "TiffPage") -> bool:
    return page.samplesperpixel in (2, 4) and bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA


def _check(page: "TiffPage", stack: int, file_bytes: int) -> None:
    check_size(page.imagewidth, page.imagelength)
    if page.nbytes * stack > _MOST_BYTES:
        raise ImageError(f"{page.nbytes * stack / 2**30:.1f} GiB of values; the limit is 4 GiB")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ImageError(f"TIFF of shape {page.shape} ({page.axes}); expected rows, columns and channels")
    ends = (at + size for at, size in zip(page.dataoffsets, page.databytecounts))
    if max(ends, default=0) > file_bytes:
        raise ImageError("truncated TIFF (its pixels lie beyond its end)")


def _arrange(values: NDArray[Any], axes: str, page: "TiffPage", pages: int, all_channels: bool) -> Samples:
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(*values.shape[:2], -1)
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    inverted = page.photometric == _GREY_WHITE and values.dtype.kind == "u"
    if inverted:
        values = np.iinfo(values.dtype).max - values
    orientation = page.tags.valueof(274, 1)
    if orientation in range(2, 9):
        values = apply_orientation(values, orientation)
    has_alpha = _alpha_of(page)
    colours = 3 if page.photometric == _RGB else 1
    # Pillow reads 16-bit colour whose channels are stored one after the other as if they weren't.
    is_plain = values.dtype == np.uint16 and not inverted and axes != "SYX"
    return _split_alpha(
        values,
        has_alpha=has_alpha and not all_channels,
        is_colour=page.photometric == _RGB,
        is_plain=is_plain and values.shape[2] - has_alpha == colours,
        pages=pages,
    )


def _split_alpha(values: NDArray[Any], *, has_alpha: bool, **others: Any) -> Samples:
    if not has_alpha:
        return Samples(values=values, **others)
    opaque = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
    alpha = (values[..., -1] / opaque).astype(np.float32)
    return Samples(values=values[..., :-1], alpha=alpha, **others)
