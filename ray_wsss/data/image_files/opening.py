"""Opening image files with Pillow; every failure is an ``ImageError``."""

import importlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from io import BytesIO

from PIL import Image, UnidentifiedImageError, __version__, features

from ray_wsss.data.image_files.formats import find_format

MAX_PIXELS = 500_000_000
"""Most pixels of an image. Larger images are refused: each would take more than 1.5 GB when decoded."""

# A closed list, because some of Pillow's other formats start programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
_RECOGNISED = ("AVIF", "HEIF")
"""Formats that are tried only on files that begin like them: not every Pillow knows their names."""
_PARTS = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
"""Parts of Pillow that a build of it may lack, by the format that they read."""

# Exceptions that decoders raise on malformed input, found by feeding them cut and altered files.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_QUIET_LOCK = threading.Lock()


class ImageError(ValueError):
    """Bytes are not a complete image of a supported kind; the message is the reason, without a file name."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings about damaged metadata, one thread at a time: warning filters are global."""
    with _QUIET_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(data: bytes, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """Parse the header of an image in one of Pillow's ``formats``.

    Our size limit replaces Pillow's, which warns at 89 and fails at 179 megapixels.

    Raises:
        ImageError: the file is no such image, its header is damaged, it has more than `MAX_PIXELS`, or a
            package is missing that reads it.
    """
    if not data:
        raise ImageError("empty file")
    kind = find_format(data)
    if kind in formats:
        _require_reader(kind)
    tried = [name for name in formats if name == kind or name not in _RECOGNISED]
    with quiet():
        guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(BytesIO(data), formats=tried)
        except UnidentifiedImageError as error:
            raise ImageError(_why_unidentified(kind, formats)) from error
        except DECODER_ERRORS as error:
            raise ImageError(f"not an image that can be read ({error})") from error
        finally:
            Image.MAX_IMAGE_PIXELS = guard
    check_size(image.width, image.height)
    return image


def load_image(data: bytes, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """Decode the first frame or page of an image. Raises ImageError as `open_image` and for bad pixels."""
    image = open_image(data, formats)
    kind = "JPEG" if image.format == "MPO" else image.format
    try:
        # Only TIFF reads metadata, and may warn, while loading. Without the lock, others load in parallel.
        with quiet() if image.format == "TIFF" else nullcontext():
            image.load()
    except DECODER_ERRORS as error:
        reason = str(error)
        cut = "truncated" in reason or "broken data stream" in reason
        raise ImageError(f"truncated {kind} ({reason})" if cut else f"corrupt {kind} ({reason})") from error
    return image


def check_size(width: int, height: int) -> None:
    """Raise ImageError for more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels; the limit is {MAX_PIXELS // 10**6} megapixels")


def _require_reader(kind: str) -> None:
    why = _why_unreadable(kind)
    if why is not None:
        raise ImageError(f"{kind.replace('HEIF', 'HEIC')}; {why}")


@cache
def _why_unreadable(kind: str) -> str | None:
    """What is missing on this machine to read a format; None if nothing is."""
    if kind == "HEIF":
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            return "pip install -e '.[heif]' reads it"
    # Asked of the list, since a Pillow that knows nothing of a part warns when asked for it.
    elif kind in _PARTS and _PARTS[kind] not in features.get_supported():
        return f"this build of Pillow ({__version__}) lacks it: pip install --upgrade pillow"
    return None


def _why_unidentified(kind: str | None, formats: tuple[str, ...]) -> str:
    if kind in formats:
        return f"truncated {kind} (its header is incomplete or damaged)"
    return f"not an image (expected one of {', '.join(formats)})"
