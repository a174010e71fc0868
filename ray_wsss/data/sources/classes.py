"""Names and order of the classes as a file of the user's gives them, for any source."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ray_wsss.data.schema import SourceRow, check_class_names
from ray_wsss.data.source import Source
from ray_wsss.data.sources.rows import SourceRows
from ray_wsss.errors import UserError, did_you_mean
from ray_wsss.label_format import label_format


def read_class_names(path: Path) -> list[str]:
    """Names of classes, one per line, in UTF-8; blank lines don't count. Raises UserError without a name."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}); expected class names") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); expected a class name per line") from None
    names = [line.strip() for line in lines if line.strip()]
    check_class_names(names, path)
    return names


def with_classes(source: Source, class_names: Sequence[str], origin: Path) -> Source:
    """The source with other names or another order of classes: those in the file ``origin``.

    Classes that no image has may be left out. A ground-truth mask keeps its classes under their new indices.

    Raises:
        UserError: an image has a class that ``class_names`` lacks.
    """
    if list(class_names) == list(source.class_names):
        return source
    index_of = {name: index for index, name in enumerate(class_names)}
    new_index = {old: index_of[name] for old, name in enumerate(source.class_names) if name in index_of}

    def rows() -> Iterator[SourceRow]:
        for row in source.rows:
            found = {*(row.image_labels or ()), *(a["class_index"] for a in row.annotations or ())}
            for old in sorted(found - new_index.keys()):
                name = source.class_names[int(old)]
                hint = did_you_mean(name, class_names, "expected the classes of all images")
                raise UserError(f"{origin} lacks the class '{name}' of {row.image_id}; {hint}")
            yield _renumbered(row, new_index)

    old_ignore, ignore = (label_format(len(names)).ignore for names in (source.class_names, class_names))
    mask_values = {old + 1: new + 1 for old, new in new_index.items()} | {0: 0, old_ignore: ignore}
    return replace(source, class_names=class_names, rows=SourceRows.of(rows()), mask_values=mask_values)


def _renumbered(row: SourceRow, new_index: dict[int, int]) -> SourceRow:
    labels, annotations = row.image_labels, row.annotations
    if labels is not None:
        labels = tuple(sorted(new_index[old] for old in labels))
    if annotations is not None:
        annotations = [{**a, "class_index": new_index[a["class_index"]]} for a in annotations]
    return replace(row, image_labels=labels, annotations=annotations)
