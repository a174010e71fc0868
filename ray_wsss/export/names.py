"""File names for images whose ids come from anywhere: they stay in their folder, and no two are one."""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

from ray_wsss.data.images import IMAGE_SUFFIXES

_LONGEST = 120
"""Bytes of a name; file systems allow 255 with everything that is added to it."""
_DIGEST = 10
_LARGEST_NUMBER = 2**53
"""JavaScript knows no larger whole numbers."""


class FileNames:
    """Names and numbers of images, the same for the same ids in any order.

    An image keeps its id as its name, without an image's suffix, as far as that is a plain file name: other
    characters, slashes among them, become "_". Where several images would then have one name (letters that
    differ in their case alone count as equal) each gets a piece of its id's hash.

    Numbers are the ids themselves where all of them are numbers, as COCO's are, else they count from 1.

    Args:
        image_ids: all of them. Held are 16 bytes of each.
    """

    def __init__(self, image_ids: Iterable[str]) -> None:
        keys, numbers = array("Q"), array("q")
        for image_id in image_ids:
            name = _plain(image_id)
            keys.append(_key(name))
            numbers.append(_number(name))
        values, counts = np.unique(np.frombuffer(keys, np.uint64), return_counts=True)
        self._clashing = set(values[counts > 1].tolist())
        found = np.frombuffer(numbers, np.int64)
        self._numbered = bool((found >= 0).all()) and len(np.unique(found)) == len(found)

    def name(self, image_id: str) -> str:
        """File name, without suffix, of an image."""
        plain = _plain(image_id)
        if _key(plain) not in self._clashing and not _ends_like_digest(plain):
            return plain
        return f"{plain}-{hashlib.sha256(image_id.encode()).hexdigest()[:_DIGEST]}"

    def number(self, image_id: str, position: int) -> int:
        """The number of the image at ``position``, from 0."""
        return _number(_plain(image_id)) if self._numbered else position + 1


def _plain(image_id: str) -> str:
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
    """The number that a name is, else -1."""
    number = int(name) if name.isascii() and name.isdecimal() and len(name) <= 16 else -1
    return number if number < _LARGEST_NUMBER else -1
