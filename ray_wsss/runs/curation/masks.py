"""Masks of a data set, corrected or drawn by hand, in place of the pseudo labels of another."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader, open_shard, shard_paths
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.label_format import LabelMap, label_format
from ray_wsss.runs.curation.match import match_images
from ray_wsss.runs.manifest import dataset_hash
from ray_wsss.storage import read_side_by_side

log = logging.getLogger(__name__)

KEPT = "kept"
"""Value of ``source`` for a pseudo label that is a mask made by hand."""
_SHOWN = 10
"""Class names that a sentence lists."""


@dataclass(frozen=True, eq=False)
class HandMasks:
    """Masks of a data set, by the image ids of the data set whose labels they replace."""

    reader: ShardReader
    rows: dict[str, int]
    """Row of the mask by image id."""
    class_names: Sequence[str]
    """Classes of the masks as they are stored."""
    new_labels: NDArray[np.uint8 | np.uint16]
    """Label by stored label, ignored pixels included."""

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, image_id: str) -> LabelMap:
        """Label map (H, W) of an image, in the classes of the data set that is labelled.

        Raises:
            KeyError: the image has no mask.
            ValueError: the mask can't be decoded, or holds a label that is no class.
        """
        stored = decode_mask(self.reader.read(self.rows[image_id], ["mask"])["mask"], len(self.class_names))
        known, ignore = len(self.class_names), len(self.new_labels) - 1
        beyond = stored[(stored > known) & (stored != ignore)]
        if beyond.size:
            raise ValueError(
                f"its mask in {self.reader.dataset} has label {beyond[0]}; expected 0 to {known}"
            )
        return self.new_labels[stored]


def open_hand_masks(flag: str, masks: Path, dataset: Path, *, tell: bool = True) -> HandMasks:
    """Masks of the data set ``masks`` for images of ``dataset`` (`match_images`); classes join by name.

    Args:
        flag: the flag that named ``masks``, for messages.
        tell: log what was found.

    Raises:
        UserError: ``masks`` is no data set with masks, has a class that ``dataset`` lacks, or none of its
            images.
    """
    ours, theirs = DatasetMetadata.load(dataset).class_names, DatasetMetadata.load(masks)
    if not theirs.has_masks:
        raise UserError(f"{flag} {masks} has no masks; expected a data set with them")
    strange = [name for name in theirs.class_names if name not in ours]
    if strange:
        raise UserError(
            f"{flag} {masks} has classes that {dataset} lacks: {_some(strange)}; expected {_some(ours)}"
        )
    found = match_images(dataset, masks, rows_with_masks(masks))
    if not found.rows:
        raise UserError(
            f"{flag} {masks} has a mask for none of the images of {dataset}; "
            "expected images with the same ids, file names or content"
        )
    absent = [name for name in ours if name not in theirs.class_names]
    if tell:
        for sentence in found.describe(dataset, masks):
            log.info(sentence)
        if absent:
            log.info("%s does not know %s: its masks have none of it", masks, _some(absent))
    new_labels = labels_by_name(theirs.class_names, ours)
    return HandMasks(ShardReader(masks.absolute()), found.rows, theirs.class_names, new_labels)


def labels_by_name(stored: Sequence[str], wanted: Sequence[str]) -> NDArray[np.uint8 | np.uint16]:
    """Label in the classes ``wanted`` by label in the classes ``stored``, all of which are among them.

    The last entry is that of ignored pixels. Classes are counted from 1, since 0 is the background.
    """
    before, after = label_format(len(stored)), label_format(len(wanted))
    labels = np.zeros(before.ignore + 1, after.dtype)
    labels[before.ignore] = after.ignore
    place = {name: label for label, name in enumerate(wanted, 1)}
    labels[1 : 1 + len(stored)] = [place[name] for name in stored]
    return labels


def hand_masks_settings(name: str, masks: Path | None) -> dict[str, str]:
    """SHA-256 of the data set ``masks``, by the name of what it is to a result; empty without one."""
    return {} if masks is None else {name: dataset_hash(masks)}


def rows_with_masks(dataset: Path) -> list[int]:
    """Rows of a data set that have a mask, ascending."""
    there = np.concatenate(list(read_side_by_side(_has_mask, shard_paths(dataset))))
    return np.flatnonzero(there).tolist()


def _has_mask(path: Path) -> NDArray[np.bool_]:
    with open_shard(path) as file:
        batches = file.iter_batches(columns=["mask"], use_threads=False)
        return np.concatenate(
            [np.zeros(0, bool), *(batch.column(0).is_valid().to_numpy(False) for batch in batches)]
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
