"""Labels and objects of images from a table: of labels, places, one-hot columns, or one path a line."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_wsss.data.schema import SourceRow, check_class_names
from ray_wsss.data.source import Source
from ray_wsss.data.sources.locations import Locator
from ray_wsss.data.sources.names import Names
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.data.tables.lines import NONE, LabelTable
from ray_wsss.data.tables.placed_labels import PlacedLabels
from ray_wsss.errors import UserError

Labels = frozenset[str]
Statement = tuple[Labels, str | None]
"""Labels of an image, and a class that is unknown while others aren't."""
_PARTLY_UNKNOWN = "labels counted as unknown, because those of some class are"


def read_csv(
    table: Path,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
    *,
    none_label: str | None = None,
    one_hot: bool = False,
) -> Source:
    """Read the class names and one row per path from ``table``.

    Class names are ``classes`` in their order, else the one-hot columns in theirs, else all labels sorted.
    A path is relative to ``images`` or, without it, to the folder of the table; or it is a URI (https, s3,
    gs). A blank label column leaves the labels unknown; lines with the same path add their labels together.
    An image that has both a class and none of them becomes an error row. A line may say where its label is:
    a point ``path,label,x,y``, with 1 (on the object) or 0 (beside it) behind it, or a box
    ``path,label,x1,y1,x2,y2``, in pixels (`data.tables.placed_labels`). The first line is a header if its
    path has no image extension and no such file exists. The table is UTF-8, with or without a byte order
    mark.

    Below a header of more than two columns, columns are classes: 1 says that the image has the class, 0 that
    it hasn't; all 0 is none of the classes. If a cell is blank or -1, the labels of the image are unknown,
    because a data set can't say that one class is unknown. A file named ``.txt`` has one path in each line,
    and the labels are unknown.

    Args:
        none_label: label, or one-hot column, of images that have none of the classes.
        one_hot: columns are classes, even if the header has only two columns.

    Raises:
        UserError: the table is missing or malformed, has no labels, or a label that ``classes`` lacks.
    """
    root = table.parent if images is None else images
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected the folder of the paths in {table}")
    if none_label is not None and none_label in (classes or ()):
        raise UserError(f"--none-label is '{none_label}', which is also a class; expected another word")
    lines = LabelTable(table, root, none_label, one_hot)
    placed = PlacedLabels()
    said = _read_lines(lines, classes, placed)
    if not len(said.names):
        raise UserError(f"{table} lists no image; expected lines of 'path,label;label'")
    used = frozenset[str]().union(*(labels for labels, _ in said.statements))
    class_names = list(classes or lines.classes or sorted(used - {NONE}))
    if not class_names:
        raise UserError(
            f"{table} has no label in any line; expected lines of 'path,label;label', or a file of "
            "class names (--classes)"
        )
    check_class_names(class_names, table)
    remarks = []
    if none_label is not None and NONE not in used:
        remarks.append(f"no line of {table} has the label '{none_label}' (--none-label)")
    rows = SourceRows.of(_rows(said, class_names, Locator(root), placed))
    return Source(kind="csv", class_names=class_names, rows=rows, remarks=remarks)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Content of the lines of a table, in some 28 bytes of memory a line."""

    names: Names
    statement_of: "array[int]"
    """Index of the statement of each line."""
    statements: list[Statement]
    """Different statements: a million lines make few."""


def _read_lines(table: LabelTable, classes: Sequence[str] | None, placed: PlacedLabels) -> _Lines:
    """Read the lines of a table; ``placed`` receives them, for their boxes and points."""
    names, statement_of, known = Names(), array("I"), dict[Statement, int]()
    for line in table.lines():
        statement = line.labels, line.unknown_class
        if statement not in known:
            _check_labels(line.labels, classes, f"{table.table} line {line.number}")
        statement_of.append(known.setdefault(statement, len(known)))
        names.add(line.path)
        placed.add(line)
    return _Lines(names, statement_of, list(known))


def _by_image(said: _Lines) -> Iterator[tuple[str, Statement]]:
    """Each image once, at its first line, with what all of its lines say together."""
    first, statement_of = said.names.first_equal(), said.statement_of
    statements, known = said.statements, {statement: k for k, statement in enumerate(said.statements)}
    repeated = np.flatnonzero(first != np.arange(len(first), dtype=first.dtype))
    for line in repeated.tolist():
        image = int(first[line])
        (labels, unknown), (more, also) = statements[statement_of[image]], statements[statement_of[line]]
        together = labels | more, also or unknown
        if together not in known:
            known[together] = len(statements)
            statements.append(together)
        statement_of[image] = known[together]
    for line, name in enumerate(said.names):
        if first[line] == line:
            yield name, statements[statement_of[line]]


def _check_labels(labels: Labels, classes: Sequence[str] | None, where: str) -> None:
    strange = sorted(label for label in labels if label != NONE and label not in (classes or labels))
    if strange:
        raise UserError(f"{where} has label '{strange[0]}'; expected one of: {', '.join(classes or ())}")


def _rows(
    said: _Lines, class_names: Sequence[str], locator: Locator, placed: PlacedLabels
) -> Iterator[SourceRow]:
    class_of = {name: index for index, name in enumerate(class_names)}
    for image_id, (labels, unknown) in _by_image(said):
        path, error = locator.locate(image_id)
        named = sorted(label for label in labels if label != NONE)
        if NONE in labels and named:
            error = error or f"it has the class '{named[0]}' and also none of the classes"
        yield SourceRow(
            image_id=image_id,
            path=path,
            image_labels=tuple(sorted(class_of[name] for name in named)) if labels and not unknown else None,
            error=error,
            annotations=placed.annotations_of(image_id, class_of),
            remarks=((_PARTLY_UNKNOWN, f"class '{unknown}'"),) if unknown else placed.remarks_of(image_id),
        )
