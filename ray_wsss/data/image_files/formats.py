"""Which files are images: by suffix where it says so, else by the first bytes."""

import mimetypes
from collections.abc import Callable
from pathlib import PurePosixPath

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".avif"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        *(".jp2", ".j2k", ".jpf", ".jpx", ".heic", ".heif", ".hif"),
    )
)
"""Suffixes, in lower case, of files that are read as images whatever they hold."""

HEAD_BYTES = 32
"""Bytes that `find_format` needs from the beginning of a file."""

# Raw pictures of cameras begin as TIFF files do, but what a TIFF reader finds in them is a small preview.
_CAMERA_RAW = frozenset((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"))
# Without the files of the system, so that every machine knows the same types.
_KNOWN_TYPES = mimetypes.MimeTypes()
_UNTELLING = "application/octet-stream"

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
_TESTS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda head: head.startswith(b"\xff\xd8\xff"),
    "PNG": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "TIFF": lambda head: head.startswith((b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")),
    "WEBP": lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP",
    "BMP": lambda head: head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES,
    "GIF": lambda head: head.startswith((b"GIF87a", b"GIF89a")),
    "PPM": lambda head: head[:1] == b"P" and head[1:2] in b"123456fF" and head[2:3].isspace(),
    "JPEG2000": lambda head: head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    "AVIF": lambda head: head[4:8] == b"ftyp" and b"avi" in (head[8:11], head[16:19], head[20:23]),
    "HEIF": lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS,
}


def find_format(head: bytes) -> str | None:
    """Pillow's name of the format of a file that begins with ``head``; None if it is no image.

    Args:
        head: the first `HEAD_BYTES` of the file, or more.
    """
    return next((name for name, test in _TESTS.items() if test(head)), None)


def is_image_by_name(name: str) -> bool | None:
    """Whether a file is an image, as far as its suffix says; None: only its content can tell."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    kind, packed = _KNOWN_TYPES.guess_type(f"file{suffix}")
    unknown = packed is None and (kind is None or kind == _UNTELLING or kind.startswith("image/"))
    return None if unknown and suffix not in _CAMERA_RAW else False
