"""People's image files as a data set stores them: files that every stage decodes alike, without settings.

A file stays as it is if `decode_image` reads it rightly. Others become a PNG of 8 bits here, once: those of
more than 8 bits whose values are scaled, and those of many channels. So later stages need to know neither
the settings nor the packages that read such files. What is made of a file depends on its bytes and the
settings alone, not on other images.
"""

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.image_files.opening import DECODER_ERRORS, ImageError, open_image
from ray_wsss.data.image_files.samples import Samples, read_samples
from ray_wsss.data.images import choose_orientation, decode_image, probe_image

_AUTO_PERCENTILES = (0.1, 99.9)
"""A few hot or dead pixels of a sensor don't decide the scale."""
_NARROW = 0.25
"""Share of the file format's scale below which "auto" stretches: of 256 greys, fewer than 64 would be used.
Cameras of 10, 12 and 14 bits in files of 16 are all below it."""

Remark = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedImage:
    """An image as `decode_image` reads it."""

    data: bytes
    """The file as it was, or a PNG made of it."""
    remarks: list[Remark] = field(default_factory=list)
    """(remark, detail) of what was left out or changed."""


def convert_image(data: bytes, config: DecodeConfig) -> ConvertedImage:
    """Convert an image file that `decode_image` wouldn't read, or would read at another scale.

    Raises:
        ImageError: the file is damaged or no image, its values lie outside the scale of ``full``, or it
            lacks one of the chosen channels.
    """
    samples = read_samples(data, all_channels=bool(config.channels))
    pages = samples.pages if samples is not None else _count_pages(data)
    remarks = [("first of several pages or frames", f"1 of {pages}")] if pages > 1 else []
    if samples is None:
        return ConvertedImage(data=data, remarks=remarks)
    if samples.lost_bits and config.intensity != "full":
        remarks.append(("16 bits read as 8", "pip install -e '.[deep]' reads them, for --intensity"))
    values, chosen = _choose_channels(samples, config.channels)
    ends, stretched = _find_ends(values, config, shared=samples.is_colour)
    remarks += [*chosen, *stretched]
    if samples.is_plain and ends is None and not config.channels:
        return ConvertedImage(data=data, remarks=remarks)
    pixels = _scale(values, ends)
    if samples.alpha is not None:  # on white, as `decode_image` does it
        opacity = samples.alpha[..., None]
        pixels = np.rint(pixels * opacity + 255 * (1 - opacity)).astype(np.uint8)
    orientation = probe_image(data).exif_orientation if data[:4] == b"\x89PNG" else 1
    return ConvertedImage(data=_encode(pixels, orientation), remarks=remarks)


def decode_upright(data: bytes, config: DecodeConfig | None = None) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8 RGB, turned as EXIF says. Raises ImageError."""
    return decode_image(*convert_upright(data, config))


def convert_upright(data: bytes, config: DecodeConfig | None = None) -> tuple[bytes, int]:
    """An image file as `decode_image` reads it, and its EXIF orientation. Raises ImageError."""
    stored = convert_image(data, config or DecodeConfig()).data
    return stored, choose_orientation(probe_image(stored), None)


def _count_pages(data: bytes) -> int:
    """Number of pages or frames; 1 for the pictures of phones that hold a preview or a depth map too."""
    image = open_image(data)
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except DECODER_ERRORS:
        return 1  # what is wrong with later frames is no matter


def _choose_channels(samples: Samples, wanted: tuple[int, ...]) -> tuple[NDArray[Any], list[Remark]]:
    """(H, W, 1 or 3) values that become grey or RGB."""
    values, count = samples.values, samples.values.shape[2]
    if count == 1 or (count == 3 and not wanted):
        return values, []
    if wanted:
        if max(wanted) >= count:
            raise ImageError(f"the image has {count} channels; --channels asks for number {max(wanted)}")
        return values[..., list(wanted)], []
    if count == 2:
        blue = np.zeros_like(values[..., :1])
        return np.concatenate((values, blue), axis=-1), [("two channels as red and green", "no blue")]
    return values[..., :3], [("channels left out", f"the first 3 of {count} became red, green and blue")]


def _find_ends(
    values: NDArray[Any], config: DecodeConfig, *, shared: bool
) -> tuple[NDArray[np.float64] | None, list[Remark]]:
    """Values (2, C) that become black and white; None for the scale of the file format."""
    if values.dtype == np.uint8:
        return None, []
    if config.intensity == "full":
        _check_scale(values)
        return None, []
    groups = [values] if shared else [values[..., k] for k in range(values.shape[2])]
    if config.intensity != "auto":
        _, low, high = config.intensity
        return np.array([_percentiles(group, low, high) for group in groups]).T, []
    found = [_auto_ends(group) for group in groups]
    stretched = [f"{ends[0]:g} to {ends[1]:g}" for ends in found if ends is not None]
    if not stretched:
        return None, []
    ends = [ends or (0.0, _white(values.dtype)) for ends in found]
    return np.array(ends).T, [("intensity stretched", f"{', '.join(stretched)} became 0 to 255")]


def _auto_ends(values: NDArray[Any]) -> tuple[float, float] | None:
    """Values that become black and white; None for the scale of the file format."""
    low, high = _percentiles(values, *_AUTO_PERCENTILES)
    least, greatest, white = values.min(), values.max(), _white(values.dtype)
    fits = least >= 0 and greatest <= white  # false for NaN
    # An even picture has no contrast to stretch.
    if fits and (least == greatest or high - low >= _NARROW * white):
        return None
    return low, high


def _percentiles(values: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Two percentiles of the finite values; the least and the greatest value where the two are equal."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        raise ImageError("none of the values is a number")
    ends = np.percentile(finite, (low, high))
    if ends[0] == ends[1]:
        ends = (finite.min(), finite.max())
    return float(ends[0]), float(ends[1])


def _white(dtype: np.dtype[Any]) -> float:
    return 1 if dtype.kind == "f" else 255 if dtype.itemsize == 1 else 0xFFFF


def _check_scale(values: NDArray[Any]) -> None:
    low, high, white = values.min(), values.max(), _white(values.dtype)
    if not (low >= 0 and high <= white):  # also for NaN
        raise ImageError(
            f"values from {low:g} to {high:g}; --intensity full takes 0 to {white:g}, "
            "--intensity auto or percentile takes any"
        )


def _scale(values: NDArray[Any], ends: NDArray[np.float64] | None) -> NDArray[np.uint8]:
    """Values (H, W, C) as 8 bits: the high byte, or linear between the ``ends`` (2, C)."""
    if values.dtype == np.uint8:
        return values
    if ends is None and values.dtype.kind != "f":
        return (values >> (8 if values.dtype.itemsize > 1 else 0)).astype(np.uint8)
    low, high = np.broadcast_to([[0.0], [1.0]] if ends is None else ends, (2, values.shape[2]))
    scaled = np.empty(values.shape, np.uint8)
    for k in range(values.shape[2]):  # one at a time: floats of all channels would take much memory
        span = max(high[k] - low[k], np.finfo(np.float32).tiny)
        with np.errstate(over="ignore", invalid="ignore"):  # by values that are infinite, or nearly
            bright = np.clip((values[..., k].astype(np.float64) - low[k]) * (255 / span), 0, 255)
        scaled[..., k] = np.rint(np.nan_to_num(bright))
    return scaled


def _encode(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    exif = Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()
