"""Images in folders. With one folder per class, an image's class is the name of its top folder."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray_wsss.data.image_files.formats import HEAD_BYTES, find_format, is_image_by_name
from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.data.source import Source
from ray_wsss.errors import UserError
from ray_wsss.storage import FoundFile, find_files, is_remote, printable, read_head, read_side_by_side

_HIDDEN = "hidden"


def read_folder(root: Path, none_folder: str | None = None) -> Source:
    """Read the sorted class names and one row per distinct image below ``root``.

    Classes are the folders in ``root`` that hold an image at any depth. Identical files (by SHA-256) become
    one row, named after the first path, with the classes of all. The labels of images directly in
    ``root`` are unknown. `find_images` says which files are images.

    Args:
        none_folder: name of a folder in ``root`` that is no class: its images have none of the classes. An
            image that is also in a class folder becomes an error row.

    Raises:
        UserError: ``root`` is not a folder, has no class folder with images, or ``none_folder`` has none.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected one with a folder of images per class")
    listing = find_images(root, _list_files(root))
    files = listing.images
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
    return Source(kind="folder", class_names=class_names, rows=rows, passed_over=listing.passed_over)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Files of a folder."""

    images: Mapping[str, FoundFile]
    """Images by path relative to the folder."""
    passed_over: Mapping[str, int]
    """Number of other files, by suffix in lower case; "" for files without one, "hidden" for hidden ones."""


def find_images(root: Path, files: Mapping[str, FoundFile]) -> Listing:
    """Tell the images among ``files`` of ``root`` from the others.

    A suffix such as .jpg or .txt decides. Files without one, or with an unknown one, are told by their first
    bytes. Hidden files, and files in hidden folders, are passed over.
    """
    hidden = {name for name in files if is_hidden(name)}
    verdict = {name: is_image_by_name(name) for name in files if name not in hidden}
    # Empty ones aren't opened: they hold no image, and a named pipe, which looks empty, would block.
    unsure = [name for name, is_image in verdict.items() if is_image is None and files[name].size]
    verdict |= zip(unsure, read_side_by_side(lambda name: _looks_like_image(root / name), unsure))
    others = [_HIDDEN if name in hidden else _suffix(name) for name in files if not verdict.get(name)]
    return Listing(
        images={name: found for name, found in files.items() if verdict.get(name)},
        passed_over=dict(sorted(Counter(others).items())),
    )


def is_hidden(name: str) -> bool:
    """Tell whether a file is hidden, or a folder that its path leads through."""
    return any(part.startswith(".") for part in name.split("/"))


def list_images(root: Path) -> Listing:
    """Images in ``root`` and in its subfolders, as `find_images` tells them, in order of their names.

    Linked images are listed; linked folders are not entered.

    Raises:
        UserError: ``root`` is not a folder, or has no images.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected one with images")
    listing = find_images(root, dict(sorted(find_files(root).items())))
    if not listing.images:
        raise UserError(f"{root} has no images; expected files such as .jpg and .png in it or below it")
    return listing


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
    return SourceRow(
        image_id=group[0],
        path=path,
        image_labels=labels if names else None,
        error=error,
        remarks=tuple(("duplicate of another, merged", member) for member in group[1:]),
    )


def _class_name(name: str) -> str:
    """Name of the top folder that a file lies in; empty if it lies in none."""
    return name.partition("/")[0] if "/" in name else ""


def _looks_like_image(path: Path) -> bool:
    """Whether a file begins like an image; also True if it can't be read, since ingest then says so."""
    try:
        return find_format(read_head(path, HEAD_BYTES)) is not None
    except OSError:
        return True


def _suffix(name: str) -> str:
    return printable(PurePosixPath(name).suffix.lower())


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
