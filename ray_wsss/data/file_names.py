"""File names for images with arbitrary ids: unique, and unable to leave their folder."""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

from ray_wsss.data.image_files.formats import IMAGE_SUFFIXES

_LONGEST = 120
"""Longest name in bytes. File systems allow 255, which also has to hold what formats append."""
_DIGEST = 10
"""Hexadecimal digits of a hash that are appended to a name."""
_LARGEST_NUMBER = 2**53
"""Image numbers stay below this, since JavaScript can't represent all larger integers."""


class FileNames:
    """Names and numbers of images. Names don't depend on the order of the ids.

    The name of an image is its id without an image suffix. Characters that don't belong in a plain file name,
    slashes included, become "_". If several images would get the same name (upper and lower case count as
    equal), part of a hash of the id is appended to each.

    Numbers are the ids themselves if all ids are distinct integers, as COCO's are; else they count from 1.

    Args:
        image_ids: ids of all images; each takes 16 bytes of memory.
    """

    def __init__(self, image_ids: Iterable[str]) -> None:
        keys, numbers = array("Q"), array("q")
        for image_id in image_ids:
            name = plain_name(image_id)
            keys.append(_key(name))
            numbers.append(_number(name))
        values, counts = np.unique(np.frombuffer(keys, np.uint64), return_counts=True)
        self._clashing = set(values[counts > 1].tolist())
        found = np.frombuffer(numbers, np.int64)
        self._numbered = bool((found >= 0).all()) and len(np.unique(found)) == len(found)

    def name(self, image_id: str) -> str:
        """File name of an image, without suffix."""
        plain = plain_name(image_id)
        if _key(plain) not in self._clashing and not _ends_like_digest(plain):
            return plain
        return f"{plain}-{hashlib.sha256(image_id.encode()).hexdigest()[:_DIGEST]}"

    def number(self, image_id: str, position: int) -> int:
        """Number of an image; ``position`` is its place in the export, from 0."""
        return _number(plain_name(image_id)) if self._numbered else position + 1


def plain_name(image_id: str) -> str:
    """Name of an image as if no other image had it; `FileNames` tells clashing ones apart."""
    path = PurePosixPath(image_id)
    stem = image_id[: -len(path.suffix)] if path.suffix.lower() in IMAGE_SUFFIXES else image_id
    word = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", stem)).strip(".-")
    return word.encode()[:_LONGEST].decode(errors="ignore") or "image"


def _ends_like_digest(name: str) -> bool:
    return re.search(rf"-[0-9a-f]{{{_DIGEST}}}$", name) is not None


def _key(name: str) -> int:
    folded = unicodedata.normalize("NFC", name.casefold())
    return int.from_bytes(hashlib.sha256(folded.encode()).digest()[:8], "big")


def _number(name: str) -> int:
    """The integer that a name spells, or -1 if it spells none below `_LARGEST_NUMBER`."""
    number = int(name) if name.isascii() and name.isdecimal() and len(name) <= 16 else -1
    return number if number < _LARGEST_NUMBER else -1
