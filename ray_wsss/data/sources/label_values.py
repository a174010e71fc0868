"""Labels as containers hold them: names, numbers, or lists of either."""

from collections.abc import Iterable, Sequence
from typing import Any

Value = str | int
"""Name or number of a class."""
Values = frozenset[Value] | None
"""Classes of an image; empty: none of them; None: unknown."""


def to_values(cell: Any, none_label: str | None = None) -> Values:
    """Classes that a cell tells: a name, a number from 0, or a list of them.

    Null, blank text and -1, by which `datasets` marks missing labels, are unknown. An empty list and
    ``none_label`` are none of the classes.

    Raises:
        ValueError: the cell is something else, or ``none_label`` beside a class.
    """
    if isinstance(cell, list | tuple):
        found = [to_values(item, none_label) for item in cell]
        if any(values is None for values in found):
            return None
        classes = frozenset[Value]().union(*(values or () for values in found))
        if classes and not all(found):
            raise ValueError(f"it has the class '{min(map(str, classes))}' and also none of the classes")
        return classes
    if isinstance(cell, str):
        name = cell.strip()
        return frozenset() if name == none_label else frozenset((name,)) if name else None
    if cell is None or (isinstance(cell, int) and cell == -1):
        return None
    if isinstance(cell, bool) or not isinstance(cell, int) or cell < 0:
        raise ValueError(f"its label is {cell!r}; expected the name of a class or its number from 0")
    return frozenset((cell,))


def name_classes(values: Iterable[Value]) -> list[str]:
    """Names of the classes that occur: sorted, numbers by value and before words."""
    ordered = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    return list(dict.fromkeys(map(str, ordered)))


def to_indices(values: Values, class_names: Sequence[str], numbered: bool) -> tuple[int, ...] | None:
    """Sorted class indices; None if unknown.

    Args:
        numbered: a number is an index of ``class_names``, which somebody gave; else it is a name itself.

    Raises:
        ValueError: there is no such class.
    """
    return None if values is None else tuple(sorted({_index(v, class_names, numbered) for v in values}))


def _index(value: Value, class_names: Sequence[str], numbered: bool) -> int:
    if isinstance(value, int) and numbered:
        if value >= len(class_names):
            raise ValueError(f"its label is {value}; expected 0 to {len(class_names) - 1}")
        return value
    try:
        return class_names.index(str(value))
    except ValueError:
        shown = ", ".join(class_names[:20])
        raise ValueError(f"its label is '{value}'; expected one of: {shown}") from None
