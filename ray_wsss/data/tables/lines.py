"""Lines of a table of labels: which image, which labels, and where they are."""

import csv
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_wsss.data.image_files.formats import IMAGE_SUFFIXES
from ray_wsss.errors import UserError

NONE = ""
"""Among the labels of an image: it has none of the classes."""
_NO_CLASS = frozenset({NONE})
_WITH_PLACE = (4, 5, 6)
"""Numbers of cells of a line that says where its label is."""
_OR_PLACES = "or 'path,label,x,y', 'path,label,x,y,0|1' or 'path,label,x1,y1,x2,y2' in pixels"
_PLACES = frozenset(
    [
        *("x", "y", "positive", "point_label"),
        *("x1", "y1", "x2", "y2"),
        *("xmin", "ymin", "xmax", "ymax"),
        *("left", "top", "right", "bottom"),
    ]
)
"""Names of columns with coordinates, or with the side of a point, in lower case."""
_CELLS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": -1, "-1": -1, "-1.0": -1}


@dataclass(frozen=True, slots=True)
class LabelLine:
    """What one line of a table says."""

    number: int
    """Number of the line, from 1."""
    path: str
    labels: frozenset[str]
    """Labels, or `NONE`; empty if the line says nothing."""
    unknown_class: str | None = None
    """A class that the line leaves unknown, if it tells about others."""
    place: tuple[float, ...] = ()
    """Place of the label, in pixels: x and y of a point, or x1, y1, x2, y2 of a box; empty without a place.
    Numbers may be infinite or NaN."""
    positive: bool | None = None
    """True for a point on the object, False for one beside it; None if the line doesn't say."""


class LabelTable:
    """A table of ``path,label;label`` lines, of one-hot columns, or of one path a line (``.txt``).

    Lines with one label may also say where it is: ``path,label,x,y``, ``path,label,x,y,0|1`` or
    ``path,label,x1,y1,x2,y2``. A header of such a table names these columns.

    Args:
        images: folder that the paths are relative to.
        none_label: label, or one-hot column, of images that have none of the classes.
        one_hot: columns are classes, even if the header has only two columns.

    Raises:
        UserError: as `lines`.
    """

    def __init__(self, table: Path, images: Path, none_label: str | None, one_hot: bool) -> None:
        self.table, self.none_label = table, none_label
        self._lines = self._read_paths() if table.suffix.lower() == ".txt" else self._read_cells()
        first = next(self._lines, None)
        self._first = first
        self.columns: list[str] = []
        if first is None or not _is_header(first[1][0], images):
            if one_hot:
                raise UserError(f"{table} has no header; expected one that names the classes (--one-hot)")
        else:
            self._first = None
            if one_hot or (len(first[1]) > 2 and not _names_places(first[1])):
                self.columns = [cell.strip() for cell in first[1][1:]]

    @property
    def classes(self) -> list[str]:
        """Classes of the one-hot columns; empty if the table has none."""
        return [name for name in self.columns if name != self.none_label]

    def lines(self) -> Iterator[LabelLine]:
        """The lines below the header, once.

        Raises:
            UserError: the table can't be read, or a line is malformed.
        """
        read = self._one_hot if self.columns else self._labelled
        if self._first is not None:
            yield read(*self._first)
        for number, cells in self._lines:
            yield read(number, cells)

    def _labelled(self, number: int, cells: list[str]) -> LabelLine:
        while len(cells) > 2 and not cells[-1].strip():
            cells = cells[:-1]
        place = self._place(number, cells) if len(cells) in _WITH_PLACE else ()
        if not cells[0].strip() or (len(cells) > 2 and not place):
            raise UserError(
                f"{self.table} line {number} is '{','.join(cells)}'; expected 'path,label;label', "
                f"labels joined by ';', {_OR_PLACES}"
            )
        labels = [label.strip() for label in cells[1].split(";")] if len(cells) > 1 else []
        named = frozenset(NONE if label == self.none_label else label for label in labels if label)
        if place and (len(named) != 1 or NONE in named):
            raise UserError(
                f"{self.table} line {number} has '{cells[1].strip()}' at a place; expected one class"
            )
        positive = cells[4].strip() == "1" if len(cells) == 5 else None
        return LabelLine(number, _normal(cells[0]), named, place=place, positive=positive)

    def _place(self, number: int, cells: list[str]) -> tuple[float, ...]:
        """Coordinates of a line; empty if they aren't numbers. Raises UserError for a wrong fifth cell."""
        try:
            place = tuple(float(cell) for cell in (cells[2:] if len(cells) != 5 else cells[2:4]))
        except ValueError:
            return ()
        if len(cells) == 5 and cells[4].strip() not in ("0", "1"):
            raise UserError(
                f"{self.table} line {number} has '{cells[4].strip()}' after x and y; expected 1 for a point "
                "on the object, or 0 for one beside it"
            )
        return place

    def _one_hot(self, number: int, cells: list[str]) -> LabelLine:
        where = f"{self.table} line {number}"
        if not cells[0].strip() or len(cells) != 1 + len(self.columns):
            raise UserError(
                f"{where} has {len(cells)} cells, the first is '{cells[0].strip()}'; expected a path and "
                f"{len(self.columns)} cells, as the header has"
            )
        values = [_CELLS.get(cell.strip()) for cell in cells[1:]]
        if None in values:
            k = values.index(None)
            raise UserError(
                f"{where} has '{cells[k + 1].strip()}' in column '{self.columns[k]}'; "
                "expected 'path,label;label' or, in columns of classes, 1, 0, -1 or blank"
            )
        path = _normal(cells[0])
        blank = next((name for name, value in zip(self.columns, values) if value == -1), None)
        if blank is not None:
            tells = any(value != -1 for value in values)
            return LabelLine(number, path, frozenset(), blank if tells else None)
        found = {name for name, value in zip(self.columns, values) if value == 1}
        labels = frozenset(NONE if name == self.none_label else name for name in found)
        return LabelLine(number, path, labels or _NO_CLASS)

    def _read_paths(self) -> Iterator[tuple[int, list[str]]]:
        with _readable(self.table), self.table.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, [line.strip()]

    def _read_cells(self) -> Iterator[tuple[int, list[str]]]:
        with _readable(self.table), self.table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells


@contextmanager
def _readable(table: Path) -> Iterator[None]:
    """Errors of reading a table become sentences for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{table} can't be read ({error.strerror or error}); expected a CSV file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not UTF-8 text ({error}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{table} is not valid CSV ({error}); expected lines of 'path,label;label'") from None


def _normal(cell: str) -> str:
    path = cell.strip()
    return path if "://" in path else posixpath.normpath(path)


def _names_places(header: list[str]) -> bool:
    return {cell.strip().lower() for cell in header[2:]} <= _PLACES


def _is_header(cell: str, images: Path) -> bool:
    name = cell.strip()
    if "://" in name or Path(name).suffix.lower() in IMAGE_SUFFIXES:
        return False
    try:
        return not (images / name).is_file()
    except OSError:  # too long for a file name
        return True
