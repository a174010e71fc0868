"""Differences between two sets of label maps: pseudo labels and their corrections, or two runs of label."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.label_format import LabelMap, label_format
from ray_wsss.ops.metrics import ConfusionMatrix
from ray_wsss.runs.curation.masks import labels_by_name
from ray_wsss.runs.curation.match import match_images
from ray_wsss.runs.manifest import read_manifest, require_finished
from ray_wsss.stages.evaluate import Measure, compare_labels, describe_measure
from ray_wsss.storage import parse_path

log = logging.getLogger(__name__)


class Difference(Measure):
    """Agreement of label maps with others, as in the JSON of evaluate; the others count as the truth."""

    pixels_changed: float
    """Share of pixels that differ, ignored ones included, in [0, 1]."""
    images_changed: int
    """Number of images with such a pixel."""


@dataclass(frozen=True, eq=False)
class _LabelFolder:
    """Label maps of a run of label, or the masks of a data set."""

    path: Path
    dataset: Path
    """Data set of the images."""
    reader: ShardReader
    column: str
    class_names: Sequence[str]

    def read(self, image_id: str) -> LabelMap | None:
        """Label map (H, W) of an image, in the folder's own classes; None if it has none."""
        png = (self.reader.find(image_id, [self.column]) or {}).get(self.column)
        return decode_mask(png, len(self.class_names)) if png is not None else None


def compare_masks(labels: Path, against: Path, dataset: Path | None = None) -> dict[str, Any]:
    """Compare the label maps of ``labels`` with those of ``against``, for all images that have the latter.

    Either is an output of label or a data set with masks. Images match as in `match_images`, classes by
    name. An image without a label in ``labels`` counts as background, as in evaluate.

    Args:
        dataset: data set of the images of an output of label, if it is not where it was.

    Returns:
        ``against``, a `Difference`, and ``data`` with both paths, for JSON.

    Raises:
        UserError: a folder is neither of both, or they have no image or no class in common.
    """
    ours, theirs = _open("--labels", labels, dataset), _open("--against", against, dataset)
    names = [*ours.class_names, *(name for name in theirs.class_names if name not in ours.class_names)]
    if set(ours.class_names).isdisjoint(theirs.class_names):
        raise UserError(
            f"--against {against} has none of the classes of {labels}: {', '.join(ours.class_names[:10])}"
        )
    total, changed, pixels = ConfusionMatrix.zeros(1 + len(names)), 0, 0
    images, images_changed = 0, 0
    misfits: list[str] = []
    convert = [labels_by_name(folder.class_names, names) for folder in (ours, theirs)]
    for image_id, their_id in _common_ids(ours, theirs).items():
        other = theirs.read(their_id)
        if other is None:
            continue
        label = ours.read(image_id)
        label = np.zeros(other.shape, label_format(len(ours.class_names)).dtype) if label is None else label
        if label.shape != other.shape:
            misfits.append(image_id)
            continue
        before, after = convert[0][label], convert[1][other]
        total = total + compare_labels(before, after, 1 + len(names))
        differing = int((before != after).sum())
        changed, pixels, images = changed + differing, pixels + before.size, images + 1
        images_changed += differing > 0
    if misfits:
        log.warning("%s images have other sizes in %s, such as %s", f"{len(misfits):,}", against, misfits[0])
    if not images:
        raise UserError(f"--against {against} has a mask for none of the images of {labels}")
    found = Difference(
        **describe_measure(total, images, names),
        pixels_changed=changed / pixels,
        images_changed=images_changed,
    )
    return {"data": {"labels": str(labels.absolute()), "against": str(against.absolute())}, "against": found}


def _open(flag: str, folder: Path, dataset: Path | None) -> _LabelFolder:
    manifest = read_manifest(folder)
    if manifest is None:
        metadata = DatasetMetadata.load(folder)
        if not metadata.has_masks:
            raise UserError(f"{flag} {folder} has no masks; expected a data set with them, or labels")
        return _LabelFolder(folder, folder, ShardReader(folder), "mask", metadata.class_names)
    noted = require_finished(folder, "label").get("dataset")
    of = dataset if dataset is not None else parse_path(noted) if noted is not None else None
    if of is None or not (of / "metadata.json").is_file():
        raise UserError(f"the data set of {flag} {folder} is not where it was; name it with --dataset")
    names = DatasetMetadata.load(of).class_names
    return _LabelFolder(folder, of, ShardReader(folder), "pseudo_label", names)


def _common_ids(ours: _LabelFolder, theirs: _LabelFolder) -> Mapping[str, str]:
    """Ids in ``theirs`` by ids in ``ours``, of the images that both have."""
    if ours.dataset.absolute() == theirs.dataset.absolute():
        return {image_id: image_id for image_id in theirs.reader.image_ids}
    their_ids = ShardReader(theirs.dataset).image_ids
    found = match_images(ours.dataset, theirs.dataset)
    return {image_id: their_ids[row] for image_id, row in found.rows.items()}
