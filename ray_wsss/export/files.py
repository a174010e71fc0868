"""Files of an export: pictures that all readers show alike, and large files written piece by piece."""

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
from ray_wsss.storage import copy_file, is_remote, make_folder, replace_atomically

_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"BM": ".bmp"}
_QUALITY = 95
_JPEG_SIDE = 65_500
_HELD_CHARACTERS = 2**20


def portable_picture(data: bytes, orientation: int, *, jpeg_only: bool = False) -> tuple[bytes, str]:
    """The file to write for an image, and its suffix.

    The bytes stay as they are where every reader sees the pixels that were labelled. Where EXIF turns the
    image, some readers follow it and some don't, so it is decoded upright and encoded again: as JPEG of
    quality 95 if it was one, else as PNG. TIFF, GIF, PPM and JPEG 2000, which browsers or trainers can't
    read, become PNG too.

    Args:
        orientation: EXIF orientation, 1..8, that the image was labelled with.
        jpeg_only: make a JPEG of what is none.
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
    """An image (H, W, 3) RGB as JPEG, colours at full resolution. Raises ImageError where it is too large."""
    if max(pixels.shape) > _JPEG_SIDE:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ImageError(f"{size} pixels are too many for a JPEG; expected at most {_JPEG_SIDE} a side")
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def write_once(path: Path, data: bytes) -> None:
    """Write a file atomically, unless it is there: an interrupted export of the same inputs goes on."""
    if not path.exists():
        with replace_atomically(path) as temporary:
            temporary.write_bytes(data)


def write_picture(folder: Path, image: ExportedImage, *, jpeg_only: bool = False, skip: bool = False) -> str:
    """Write an image's picture into ``folder``, unless ``skip``; returns its file name."""
    data, suffix = portable_picture(image.data, image.orientation, jpeg_only=jpeg_only)
    if not skip:
        write_once(folder / f"{image.name}{suffix}", data)
    return f"{image.name}{suffix}"


def write_mask(path: Path, label_map: NDArray[np.uint8]) -> None:
    """Write an (H, W) uint8 label map as a PNG with VOC's palette."""
    write_once(path, encode_mask(label_map))


class StreamedFile:
    """A text file that grows piece by piece and takes its name only when it is finished.

    It is open only while it is written to, so a failed export leaves nothing but a temporary file: beside it,
    or, of a file in a store, on this machine until the process ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path.parent)
        folder = path.parent
        if is_remote(path):  # there is no appending to a file there
            folder = Path(tempfile.mkdtemp(prefix="ray_wsss_"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._temporary = folder / f".{uuid4().hex}.tmp"
        self._pieces: list[str] = []
        self._held = 0

    def write(self, text: str) -> None:
        self._pieces.append(text)
        self._held += len(text)
        if self._held > _HELD_CHARACTERS:
            self._flush()

    def append(self, other: "StreamedFile") -> None:
        """Add what another one holds, which then is no more."""
        self._flush()
        other._flush()
        with other._temporary.open("rb") as source, self._temporary.open("ab") as target:
            shutil.copyfileobj(source, target)
        other._temporary.unlink()

    def finish(self) -> None:
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
    """The entries of a JSON list, written one by one, a line each."""

    def __init__(self, file: StreamedFile) -> None:
        self.file, self.count = file, 0

    def add(self, entry: object) -> None:
        # In ASCII: names may hold what is no UTF-8, which JSON's escapes keep.
        self.file.write(f"{',' if self.count else ''}\n{json.dumps(entry)}")
        self.count += 1


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Write a small text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
