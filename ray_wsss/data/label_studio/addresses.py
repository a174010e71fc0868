"""Which image a task of Label Studio is of: a file of a folder, or a URI."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ray_wsss.data.folder import find_images
from ray_wsss.data.image_files.formats import IMAGE_SUFFIXES
from ray_wsss.data.sources.locations import URI_SCHEMES, Locator, name_of
from ray_wsss.errors import UserError
from ray_wsss.storage import find_files

_SERVED = re.compile(r"/(?:data/local-files|storage-data/uploaded)/?\?(?:.*&)?(?:d|filepath)=([^&]*)")
"""Address of a file that Label Studio serves, with its path."""
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
"""Name of a file as Label Studio's upload makes it."""


def image_address(data: Mapping[str, Any], key: str | None) -> str:
    """The text in a task's ``data`` that says which image it is of.

    It is that of ``key``; without one that of "image", else the first that ends as an image does.

    Raises:
        ValueError: there is none; the message is the reason.
    """
    if key is not None:
        texts = [data.get(key)]
    else:
        texts = [data.get("image"), *(text for text in data.values() if _ends_as_image(text))]
    address = next((text for text in texts if isinstance(text, str) and text.strip()), None)
    if address is None:
        expected = "an address of an image" if key is None else f"one under '{key}' (--image-key)"
        raise ValueError(f"its 'data' has the fields {', '.join(data)!r:.80}; expected {expected}")
    return address


class ImageFinder:
    """Finds the images of tasks in a folder.

    Args:
        root: folder of the images, at any depth.
        uris_too: whether a file of ``root`` takes the place of an image behind a URI.
    """

    def __init__(self, root: Path, *, uris_too: bool) -> None:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; expected the folder of the images")
        self.root, self.uris_too = root, uris_too
        self._locator = Locator(root)

    def find(self, address: str) -> tuple[str, str, str | None]:
        """Name of an image, its absolute path or URI, and None, or why it can't be used.

        A file is looked for by as much of its path as the folder has, then by its name alone, then by its
        name without the eight digits that an upload adds.
        """
        is_uri = address.partition("://")[0].lower() in URI_SCHEMES
        names = self._names(address) if self.uris_too or not is_uri else []
        if len(names) > 1:
            listed = ", ".join(names[:3])
            return address, address, f"{self.root} has {len(names)} files of its name ({listed})"
        if names:
            return names[0], *self._locator.locate(names[0])
        if is_uri:
            return address, *self._locator.locate(address)
        shown = name_of(address) if "://" in address else address
        return address, address, f"no image '{shown[:80]}' in {self.root}"

    def _names(self, address: str) -> list[str]:
        """Files that an address leads to, relative to the folder."""
        for path in _paths(address):
            parts = [part for part in path.split("/") if part not in ("", ".")]
            for first in range(len(parts)):
                if (name := "/".join(parts[first:])) in self._files:
                    return [name]
        for path in _paths(address):
            base = path.rpartition("/")[2]
            upload = _UPLOAD.fullmatch(base)
            for name in (base, upload.group(1) if upload else base):
                if name in self._by_base:
                    return self._by_base[name]
        return []

    @cached_property
    def _files(self) -> frozenset[str]:
        return frozenset(find_images(self.root, find_files(self.root)).images)

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self._files):
            names[PurePosixPath(name).name].append(name)
        return dict(names)


def _paths(address: str) -> Iterator[str]:
    """Paths that an address may stand for, the likeliest first."""
    served = _SERVED.search(address)
    rest = address.partition("://")[2] or address
    path = served.group(1) if served else rest.partition("?")[0].partition("#")[0]
    # Label Studio on Windows writes backslashes.
    yield from dict.fromkeys((unquote(path), path, rest, unquote(path).replace("\\", "/")))


def _ends_as_image(text: Any) -> bool:
    if not isinstance(text, str):
        return False
    return any(PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES for path in _paths(text))
