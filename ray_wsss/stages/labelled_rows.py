"""Images of a data set with the labels that `label` made of them, as rows of an overview picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.figures.overview import OverviewRow
from ray_wsss.runs.manifest import require_finished


def read_rows(labels: Path, dataset: Path, image_ids: Sequence[str]) -> Iterator[OverviewRow]:
    """Rows of these images, in order: image, prompts and pseudo label, and ground truth if there is some.

    Raises:
        UserError: ``labels`` is no finished output of label, ``dataset`` is no data set, or an image is in
            neither of them or has no label.
    """
    require_finished(labels, "label")
    num_classes = len(DatasetMetadata.load(dataset).class_names)
    images, labelled = ShardReader(dataset), ShardReader(labels)
    for image_id in image_ids:
        row = _read(images, image_id, ["image", "orientation", "mask"])
        label = _read(labelled, image_id, ["pseudo_label", "segments", "error"])
        if label["error"] is not None:
            raise UserError(f"{image_id} has no label: {label['error']}; expected another image")
        maps = {"pseudo label": decode_mask(label["pseudo_label"], num_classes)}
        if row["mask"] is not None:
            maps["ground truth"] = decode_mask(row["mask"], num_classes)
        yield OverviewRow(
            image=decode_image(row["image"], row["orientation"]),
            cams={},
            points=_points(label["segments"], positive=True),
            beside=_points(label["segments"], positive=False),
            boxes=[
                (segment["class_index"], segment["box_xyxy"])
                for segment in label["segments"]
                if segment.get("box_xyxy") is not None
            ],
            label_maps=maps,
        )


def _read(reader: ShardReader, image_id: str, columns: list[str]) -> dict[str, Any]:
    try:
        return reader.read(reader.index_of(image_id), columns)
    except KeyError:
        raise UserError(f"{reader.dataset} has no image {image_id}; expected the id of one") from None


def _points(segments: Sequence[dict[str, Any]], *, positive: bool) -> list[tuple[int, float, float]]:
    return [
        (segment["class_index"], x, y)
        for segment in segments
        for k, (x, y) in enumerate(segment["points_xy"])
        if bool((segment.get("point_labels") or [1] * (k + 1))[k]) is positive
    ]
