"""Images in folders. With one folder per class, an image's class is the name of its top folder."""

import hashlib
from collections import Counter
from pathlib import Path, PurePosixPath

from ray_wsss.data.images import IMAGE_SUFFIXES
from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.data.source import Source
from ray_wsss.errors import UserError
from ray_wsss.storage import FoundFile, find_files, is_remote


def read_folder(root: Path, none_folder: str | None = None) -> Source:
    """Read the sorted class names and one row per distinct image below ``root``.

    Classes are the folders in ``root`` that hold an image at any depth. Identical files (by SHA-256) become
    one row, named after the first path, with the classes of all. The labels of images directly in
    ``root`` are unknown. Hidden files and folders, and files without an image extension, are skipped.

    Args:
        none_folder: name of a folder in ``root`` that is no class: its images have none of the classes. An
            image that is also in a class folder becomes an error row.

    Raises:
        UserError: ``root`` is not a folder, has no class folder with images, or ``none_folder`` has none.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected one with a folder of images per class")
    files = {name: found for name, found in _list_files(root).items() if _is_image(name)}
    folders = {_class_name(name) for name in files} - {""}
    if none_folder is not None and none_folder not in folders:
        raise UserError(f"{root / none_folder} has no images; expected a folder of images (--none-folder)")
    class_names = sorted(folders - {none_folder})
    if not class_names:
        raise UserError(f"{root} has no class folder; expected folders of images such as {root / 'cat'}")
    check_class_names(class_names, root)

    names = sorted(files, key=lambda name: (_class_name(name), PurePosixPath(name)))
    located = {name: locate(root, name) for name in names}
    good = {name: files[name] for name, (_, error) in located.items() if error is None}
    keys = _content_keys(root, good)
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(keys.get(name, name), []).append(name)

    class_of = {name: index for index, name in enumerate(class_names)}
    rows = [_row(group, *located[group[0]], class_of, none_folder) for group in members.values()]
    return Source(kind="folder", class_names=class_names, rows=rows)


def list_images(root: Path) -> list[str]:
    """Sorted names, relative to ``root``, of all images in it and in its subfolders.

    Hidden files and folders, and files without an image extension, are skipped. Linked images are listed;
    linked folders are not entered.

    Raises:
        UserError: ``root`` is not a folder, or has no images.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected one with images")
    names = sorted(name for name in find_files(root) if _is_image(name))
    if not names:
        raise UserError(f"{root} has no images; expected files such as .jpg and .png in it or below it")
    return names


def _list_files(root: Path) -> dict[str, FoundFile]:
    """Files below ``root`` by relative path; class folders that are links are entered."""
    found = find_files(root)
    links = [] if is_remote(root) else [p for p in root.iterdir() if p.is_symlink() and p.is_dir()]
    for link in links:
        found |= {f"{link.name}/{name}": file for name, file in find_files(link).items()}
    return found


def _row(
    group: list[str], path: str, error: str | None, class_of: dict[str, int], none_folder: str | None
) -> SourceRow:
    names = sorted({_class_name(member) for member in group} - {""})
    if none_folder in names and len(names) > 1:
        (of_class, *_) = (name for name in names if name != none_folder)
        error = error or f"it is in '{of_class}' and, as an equal file, in '{none_folder}' (none)"
    labels = tuple(class_of[name] for name in names if name != none_folder)
    return SourceRow(image_id=group[0], path=path, image_labels=labels if names else None, error=error)


def _class_name(name: str) -> str:
    """Name of the top folder that a file lies in; empty if it lies in none."""
    return name.partition("/")[0] if "/" in name else ""


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _content_keys(root: Path, files: dict[str, FoundFile]) -> dict[str, str]:
    """SHA-256 of each file that may have a duplicate, by name; only files of one size can be identical.

    Empty and unreadable files get no hash, so that each is reported under its own name.
    """
    shared = Counter(file.size for file in files.values())
    keys = {}
    for name, found in files.items():
        if found.size and shared[found.size] > 1:
            try:
                with (root / name).open("rb") as file:
                    keys[name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                continue
    return keys
