"""What a reader of people's files returns, whatever their form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.schema import SourceKind, SourceRow
from ray_wsss.label_format import LabelMap

UNLISTED = "not listed"
"""Stands for a suffix in ``Source.passed_over``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Images and labels as somebody's files describe them, before any image is read."""

    kind: SourceKind
    class_names: Sequence[str]
    """Names of the classes; their order gives the class indices of the rows."""
    rows: Sequence[SourceRow]
    """One row for each image."""
    clumps: NDArray[np.integer] | None = None
    """Number of the group of each row, ascending. Rows of a group, such as a row group of Parquet, cost much
    to read apart. None: each row is read by itself."""
    mask_values: Mapping[int, int] | None = None
    """Label (`label_format`) by value of the ground-truth PNGs; None: they hold labels."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of files that aren't images, by suffix in lower case ("" for files without one, and
    "hidden" for all hidden files), and of images that the source doesn't list (`UNLISTED`)."""
    decode_mask: Callable[[bytes], LabelMap] | None = None
    """Decodes a file at a row's ``mask_path`` to its (H, W) label map, raising ImageError. None: the files
    are PNGs as `data.images.encode_mask` writes them."""
    remarks: Sequence[str] = ()
    """What was left out of the source or read in an unusual way, a sentence each; the user is told."""


def describe_passed_over(passed_over: Mapping[str, int]) -> str:
    """Counts of ``Source.passed_over`` in words, such as "2 .txt, 1 without suffix"."""
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in passed_over.items())
