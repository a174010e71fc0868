"""Image labels from a CSV table of ``path,label;label`` lines, with or without a header line."""

import csv
import posixpath
from collections.abc import Sequence
from pathlib import Path

from ray_wsss.data.images import IMAGE_SUFFIXES
from ray_wsss.data.schema import SourceRow, check_class_names, locate
from ray_wsss.data.source import Source
from ray_wsss.errors import UserError


def read_csv(table: Path, images: Path, classes: Sequence[str] | None = None) -> Source:
    """Read the class names and one row per path from ``table``.

    Class names are ``classes`` in their order, else all labels sorted. Paths are relative to ``images``. A
    blank label column leaves the labels unknown; lines with the same path add their labels together. The
    first line is a header if its path has no image extension and no such file exists. The table is UTF-8,
    with or without a byte order mark.

    Raises:
        UserError: the table is missing or malformed, has no labels, or a label that ``classes`` lacks.
    """
    if not images.is_dir():
        raise UserError(f"{images} is not a folder; expected the folder of the paths in {table}")
    lines = _read_lines(table)
    if lines and _is_header(lines[0][1][0], images):
        lines = lines[1:]
    labels_of: dict[str, set[str]] = {}
    for number, cells in lines:
        labels_of.setdefault(posixpath.normpath(cells[0].strip()), set()).update(
            _labels(cells, f"{table} line {number}", classes)
        )
    if not labels_of:
        raise UserError(f"{table} lists no image; expected lines of 'path,label;label'")
    class_names = list(classes) if classes is not None else sorted(set().union(*labels_of.values()))
    if not class_names:
        raise UserError(f"{table} has no label in any line; expected lines of 'path,label;label'")
    check_class_names(class_names, table)
    class_of = {name: index for index, name in enumerate(class_names)}
    rows = []
    for image_id, labels in labels_of.items():
        path, error = locate(images, image_id)
        image_labels = tuple(sorted(class_of[label] for label in labels)) or None
        rows.append(SourceRow(image_id=image_id, path=path, image_labels=image_labels, error=error))
    return Source(kind="csv", class_names=class_names, rows=rows)


def _read_lines(table: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each line that isn't blank."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except OSError as error:
        raise UserError(f"{table} can't be read ({error.strerror or error}); expected a CSV file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not UTF-8 text ({error}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{table} is not valid CSV ({error}); expected lines of 'path,label;label'") from None


def _is_header(cell: str, images: Path) -> bool:
    name = cell.strip()
    return Path(name).suffix.lower() not in IMAGE_SUFFIXES and not (images / name).is_file()


def _labels(cells: list[str], where: str, classes: Sequence[str] | None) -> list[str]:
    if not cells[0].strip() or len(cells) > 2:
        raise UserError(f"{where} is '{','.join(cells)}'; expected 'path,label;label', labels joined by ';'")
    labels = [label.strip() for label in cells[1].split(";") if label.strip()] if len(cells) > 1 else []
    unknown = [label for label in labels if classes is not None and label not in classes]
    if unknown:
        raise UserError(f"{where} has label '{unknown[0]}'; expected one of: {', '.join(classes or ())}")
    return labels
