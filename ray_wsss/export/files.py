"""Files of an export: pictures that every reader decodes alike, and large text files written in pieces."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.data.images import ImageError, decode_image, encode_mask, probe_image
from ray_wsss.export.record import ExportedImage
from ray_wsss.label_format import LabelMap
from ray_wsss.storage import copy_file, is_remote, make_folder, replace_atomically

_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"BM": ".bmp"}
_QUALITY = 95
_JPEG_SIDE = 65_500
"""Longest side that libjpeg writes, in pixels."""
_HELD_CHARACTERS = 2**20
"""Characters that a `StreamedFile` collects in memory before it writes them."""


def portable_picture(data: bytes, orientation: int, *, jpeg_only: bool = False) -> tuple[bytes, str]:
    """Bytes and suffix of the picture file to write for an image.

    The bytes stay as they are if every reader decodes them to the pixels that were labelled. If an EXIF
    orientation turns the image, some readers apply it and some don't. Such an image is decoded upright and
    encoded again, as JPEG of quality 95 if it was a JPEG, else as PNG. TIFF, GIF, PPM, JPEG 2000, AVIF and
    HEIC become PNG too, since browsers or trainers can't read them.

    Args:
        orientation: EXIF orientation, 1..8, that the image was labelled with.
        jpeg_only: convert every other format to JPEG.

    Raises:
        ImageError: the image can't be decoded, or is too large for a JPEG.
    """
    suffix = next((suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        suffix = ".webp"
    kept = (".jpg",) if jpeg_only else (".jpg", ".png", ".bmp", ".webp")
    if suffix in kept and orientation == 1 and probe_image(data).exif_orientation == 1:
        return data, suffix
    pixels = decode_image(data, orientation)
    if jpeg_only or suffix == ".jpg":
        return encode_jpeg(pixels, _QUALITY), ".jpg"
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of an image (H, W, 3) RGB, without chroma subsampling. Raises ImageError if it is too large."""
    if max(pixels.shape) > _JPEG_SIDE:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ImageError(f"{size} pixels are too many for a JPEG; expected at most {_JPEG_SIDE} a side")
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def write_once(path: Path, data: bytes) -> None:
    """Write a file atomically unless it exists, so that an interrupted export of the same inputs resumes."""
    if not path.exists():
        with replace_atomically(path) as temporary:
            temporary.write_bytes(data)


def write_picture(folder: Path, image: ExportedImage, *, jpeg_only: bool = False, skip: bool = False) -> str:
    """Write the picture of an image into ``folder``, unless ``skip``. Returns its file name either way."""
    data, suffix = portable_picture(image.data, image.orientation, jpeg_only=jpeg_only)
    if not skip:
        write_once(folder / f"{image.name}{suffix}", data)
    return f"{image.name}{suffix}"


def write_mask(path: Path, label_map: LabelMap) -> None:
    """Write a label map (H, W) as a PNG (`data.images.encode_mask`)."""
    write_once(path, encode_mask(label_map))


class StreamedFile:
    """A text file that is written in pieces under a temporary name; `finish` gives it its own name.

    A failed export leaves only the temporary file: in the folder of ``path``, or on this machine until the
    process ends if ``path`` is in an object store. The file is open only during a write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path.parent)
        folder = path.parent
        if is_remote(path):  # object stores can't append to a file
            folder = Path(tempfile.mkdtemp(prefix="ray_wsss_"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._temporary = folder / f".{uuid4().hex}.tmp"
        self._pieces: list[str] = []
        self._held = 0

    def write(self, text: str) -> None:
        """Add text at the end."""
        self._pieces.append(text)
        self._held += len(text)
        if self._held > _HELD_CHARACTERS:
            self._flush()

    def append(self, other: "StreamedFile") -> None:
        """Move the content of ``other`` to the end of this file; ``other`` can't be used afterwards."""
        self._flush()
        other._flush()
        with other._temporary.open("rb") as source, self._temporary.open("ab") as target:
            shutil.copyfileobj(source, target)
        other._temporary.unlink()

    def finish(self) -> None:
        """Write the rest, and move the file to ``path``."""
        self._flush()
        if is_remote(self.path):
            copy_file(self._temporary, self.path)
        else:
            self._temporary.replace(self.path)

    def _flush(self) -> None:
        with self._temporary.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(self._pieces)
        self._pieces, self._held = [], 0


class JsonList:
    """Writes the entries of a JSON list one by one, each on a line of its own."""

    def __init__(self, file: StreamedFile) -> None:
        self.file, self.count = file, 0

    def add(self, entry: object) -> None:
        """Add an entry that JSON can hold."""
        # json.dumps writes ASCII: names may hold lone surrogates, which its escapes keep and UTF-8 refuses.
        self.file.write(f"{',' if self.count else ''}\n{json.dumps(entry)}")
        self.count += 1


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write a small text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
