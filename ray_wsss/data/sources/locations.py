"""Where the images are that a table names: below a folder, or anywhere by URI."""

from pathlib import Path

from ray_wsss.data.schema import locate
from ray_wsss.storage import is_remote, parse_path

WEB_SCHEMES = ("http", "https")
URI_SCHEMES = (*WEB_SCHEMES, "s3", "s3a", "gs", "gcs")
"""Schemes of the URIs that a table may name; file:// would read files from outside the folder."""


class Locator:
    """Locates images by the names that a table gives them; quicker than `locate` where many share a folder.

    Args:
        root: folder that the names are relative to, unless they are URIs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, tuple[str, str | None]] = {}
        self._checked: set[str] = set()

    def locate(self, name: str) -> tuple[str, str | None]:
        """Absolute path or URI of an image and None, or ``name`` and why it can't be used.

        Raises:
            UserError: a URI contains credentials, or its storage needs a package that isn't installed.
        """
        if "://" in name:
            return name, self._check_uri(name)
        folder, _, file = name.rpartition("/")
        special = name.startswith("/") or file in ("", ".", "..")
        if special or is_remote(self.root) or _may_be_link(self.root / name):
            return locate(self.root, name)
        if folder not in self._folders:
            self._folders[folder] = locate(self.root, folder or ".")
        path, error = self._folders[folder]
        return (f"{path}/{file}", None) if error is None else (name, error)

    def _check_uri(self, uri: str) -> str | None:
        scheme, _, rest = uri.partition("://")
        if scheme.lower() not in URI_SCHEMES:
            return f"URIs of scheme '{scheme}' are not read; expected {', '.join(URI_SCHEMES)}"
        if "@" in rest.partition("/")[0] or (scheme not in WEB_SCHEMES and scheme not in self._checked):
            parse_path(uri)  # raises
            self._checked.add(scheme)
        return None


def name_of(path: str) -> str:
    """Name of the file that a path or URI leads to, without the query of a URI."""
    if "://" in path:
        path = path.partition("?")[0].partition("#")[0]
    return path.rpartition("/")[2]


def _may_be_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):  # too long, a NUL character
        return True
