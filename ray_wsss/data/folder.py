"""Images in folders; with a folder per class, an image's class is the name of the top folder it lies in."""

import hashlib
from collections import Counter
from pathlib import Path

from ray_wsss.data.images import IMAGE_SUFFIXES
from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.errors import UserError


def read_folder(root: Path) -> tuple[list[str], list[SourceRow]]:
    """Sorted class names and one row per different image below ``root``.

    Classes are the folders of ``root`` with an image somewhere in them. Equal files (by SHA-256) become one
    row, named after the first path, with the classes of all. Images directly in ``root`` have no class.
    Hidden files and folders, and files without an image's extension, are passed over.

    Raises:
        UserError: no such folder, or no class folder with images in it.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected one with a folder of images per class")
    found = {name: paths for name, paths in _class_folders(root).items() if paths}
    if not found:
        raise UserError(f"{root} has no class folder; expected folders of images such as {root / 'cat'}")
    class_names = sorted(found)
    check_class_names(class_names, root)

    loose = [p for p in sorted(root.iterdir()) if _is_image(p)]
    paths = loose + [path for name in class_names for path in found[name]]
    located = {path: locate(root, str(path.relative_to(root))) for path in paths}
    keys = _content_keys([path for path, (_, error) in located.items() if error is None])
    members: dict[str, list[Path]] = {}
    for path in paths:
        members.setdefault(keys.get(path, str(path)), []).append(path)

    class_of = {name: index for index, name in enumerate(class_names)}
    return class_names, [_row(root, group, *located[group[0]], class_of) for group in members.values()]


def list_images(root: Path) -> list[str]:
    """Sorted names, relative to ``root``, of all images in it and in the folders below.

    Hidden files and folders, and files without an image's extension, are passed over. An image may be a
    link to elsewhere; linked folders are not entered.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected one with images")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if _is_image(path, root))
    if not names:
        raise UserError(f"{root} has no images; expected files such as .jpg and .png in it, or further down")
    return names


def _row(root: Path, group: list[Path], path: str, error: str | None, class_of: dict[str, int]) -> SourceRow:
    parts = [member.relative_to(root).parts for member in group]
    labels = {class_of[part[0]] for part in parts if len(part) > 1}
    return SourceRow(
        image_id="/".join(parts[0]), path=path, image_labels=tuple(sorted(labels)) or None, error=error
    )


def _class_folders(root: Path) -> dict[str, list[Path]]:
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return {folder.name: sorted(p for p in folder.rglob("*") if _is_image(p, root)) for folder in folders}


def _is_image(path: Path, root: Path | None = None) -> bool:
    parts = path.relative_to(root).parts if root else (path.name,)
    hidden = any(part.startswith(".") for part in parts)
    # A dangling link counts: it is then reported as missing instead of passed over.
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not path.is_dir()


def _content_keys(paths: list[Path]) -> dict[Path, str]:
    """The content hash of each file that may have an equal; only files of one size can be equal.

    Empty and unreadable files get none, so that each is reported under its own name.
    """
    sizes: dict[Path, int] = {}
    for path in paths:
        try:
            sizes[path] = path.stat().st_size
        except OSError:
            continue
    shared = Counter(sizes.values())
    keys = {}
    for path, size in sizes.items():
        if size and shared[size] > 1:
            try:
                with path.open("rb") as file:
                    keys[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                continue
    return keys
