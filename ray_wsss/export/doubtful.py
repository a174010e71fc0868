"""Labels of a data set in the order in which a person should look at them: the most doubtful first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_wsss.data.images import decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.errors import UserError
from ray_wsss.export.source import IMAGE_COLUMNS, LabelledImage, LabelSource, PredictionSource
from ray_wsss.runs.curation.doubt import agreement, image_doubt
from ray_wsss.runs.manifest import file_hash, read_manifest


class DoubtfulFirst(LabelSource):
    """`LabelSource` with the most doubtful images first (`runs.curation.doubt`).

    Images without a doubt, such as those with masks made by hand, come last, in the order of the data set.

    Args:
        others: outputs of `predict` or `label` for the same images; where they differ from ``labels``, these
            are doubtful.

    Raises:
        UserError: as `LabelSource`, or one of ``others`` is no such output or has none of the images.
    """

    def __init__(self, labels: Path, dataset: Path, others: Sequence[Path] = ()) -> None:
        super().__init__(labels, dataset)
        self.rows = ShardReader(dataset)
        self.others = [_open_other(other, dataset) for other in others]
        self.depends_on: Mapping[str, Any] = {
            **self.depends_on,
            "order": "uncertain",
            "compare": [file_hash(other / "manifest.json") for other in others],
        }
        doubts = [self._doubt(row, image_id) for row, image_id in enumerate(self.rows.image_ids)]
        # Sorting is stable: equals stay in the order of the data set.
        order = sorted(range(len(doubts)), key=lambda row: -_known(doubts[row]))
        self.ranked = [(row, doubts[row]) for row in order]

    def image_ids(self) -> Iterator[str]:
        return (self.rows.image_ids[row] for row, _ in self.ranked)

    def __iter__(self) -> Iterator[LabelledImage]:
        for row, doubt in self.ranked:
            image = self.rows.read(row, IMAGE_COLUMNS)
            yield replace(self.join(image, self.label_of(image["image_id"], row)), doubt=doubt)

    def _doubt(self, row: int, image_id: str) -> float | None:
        label = self.label_of(image_id, row)
        if label["error"] is not None:
            return None
        agreements: list[float] = []
        try:
            pngs = [png for other in self.others if (png := other.mask_of(image_id)) is not None]
            if pngs:
                own, *others = (decode_mask(p, len(self.class_names)) for p in (label["pseudo_label"], *pngs))
                agreements = [agreement(own, other) for other in others]
        except ValueError:
            return 1.0  # no mask that fits: a person must look
        return image_doubt(label["segments"] or [], agreements)


class _OtherLabels:
    """Label maps of another output of `label`, by image id."""

    def __init__(self, labels: Path) -> None:
        self.reader = ShardReader(labels)

    def mask_of(self, image_id: str) -> bytes | None:
        row = self.reader.find(image_id, ["pseudo_label"])
        return None if row is None else row["pseudo_label"]


def _open_other(folder: Path, dataset: Path) -> "PredictionSource | _OtherLabels":
    manifest = read_manifest(folder)
    stage: Any = manifest["stage"] if manifest is not None else None
    if manifest is None or stage not in ("label", "predict") or manifest["state"] != "finished":
        raise UserError(f"--compare {folder} is no finished output of label or predict")
    if stage == "predict":
        return PredictionSource(folder, dataset)
    other = _OtherLabels(folder)
    if set(other.reader.image_ids).isdisjoint(ShardReader(dataset).image_ids):
        raise UserError(f"--compare {folder} has labels for none of the images of {dataset}")
    return other


def _known(doubt: float | None) -> float:
    return -1.0 if doubt is None else doubt
