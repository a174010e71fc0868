"""Image labels as targets: which images have some, and which classes can't be learned from them."""

import logging
from collections import Counter
from collections.abc import Collection, Sequence

from ray_wsss.data.learnable import unlearnable
from ray_wsss.data.reader import ShardReader

log = logging.getLogger(__name__)


def known_labels(reader: ShardReader) -> dict[int, list[int]]:
    """Class indices by row of a data set, without the rows whose labels are unknown.

    The list of an image that has none of the classes is empty: it is a negative for all of them.
    """
    labels = ((row, reader.read(row, ["image_labels"])["image_labels"]) for row in range(len(reader)))
    return {row: classes for row, classes in labels if classes is not None}


def log_left_out(unknown: int) -> None:
    """Log how many images training leaves out because their labels are unknown, if there are any."""
    if unknown:
        log.info("%s images are left out, because their labels are unknown", f"{unknown:,}")


def log_negatives(labels: Collection[Sequence[int]]) -> None:
    """Log how many images have none of the classes, if there are any."""
    negatives = sum(not classes for classes in labels)
    if negatives:
        log.info("%s images have none of the classes: all classes are absent in them", f"{negatives:,}")


def warn_of_unlearnable(labels: Collection[Sequence[int]], class_names: Sequence[str]) -> None:
    """Warn of the classes that every image has, or that no image has: no classifier can learn them.

    Args:
        labels: class indices of each training image.
    """
    images_with = Counter(c for classes in labels for c in set(classes))
    for sentence in unlearnable(images_with, len(labels), class_names):
        log.warning(sentence)
