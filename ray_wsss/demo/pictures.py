"""The demo's pictures: a first look at the images, and the results of all stages."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.demo.settings import DemoSettings, SceneDemo
from ray_wsss.figures.overview import OverviewRow, save_overview
from ray_wsss.label_format import LabelMap

_ROWS = 6
"""Images in a picture."""
_PHOTO_INCHES = 2.0
"""Side of a photograph in the picture; scenes need less."""


def save_first_look(demo: DemoSettings, *, with_cams: bool = False) -> None:
    """Write ``first_look.png``: images, their ground truth and, ``with_cams``, the CAMs without CPM."""
    records, classes = _drawn(demo), len(DatasetMetadata.load(demo.held_out).class_names)
    cams = _cams_of(demo, records, ("plain",)) if with_cams else [{} for _ in records]
    rows = [
        OverviewRow(image=_pixels(record), cams=of_image, points=[], label_maps=_truth(record, classes))
        for record, of_image in zip(records, cams)
    ]
    _save(demo, rows, "first_look.png")


def save_overview_of(demo: DemoSettings) -> None:
    """Write ``overview.png``: some of the held-out images, and what stages make of them."""
    from ray_wsss.stages.predict import Predictor

    classes = len(DatasetMetadata.load(demo.held_out).class_names)
    labels = ShardReader(demo.labels("held_out", "cpm"))
    segmenter = Predictor.load(demo.out / "segmenter", demo.recipe.predict)
    records, rows = _drawn(demo), []
    for record, cams in zip(records, _cams_of(demo, records, ("plain", "cpm"))):
        label, pixels = labels.read(labels.index_of(record["image_id"])), _pixels(record)
        labelled = {} if label["error"] else {"pseudo label": decode_mask(label["pseudo_label"], classes)}
        rows.append(
            OverviewRow(
                image=pixels,
                cams=cams,
                points=[(s["class_index"], *xy) for s in label["segments"] or () for xy in s["points_xy"]],
                label_maps=labelled | {"segmenter": segmenter(pixels)} | _truth(record, classes),
            )
        )
    _save(demo, rows, "overview.png")


def _save(demo: DemoSettings, rows: Sequence[OverviewRow], name: str) -> None:
    names = DatasetMetadata.load(demo.held_out).class_names
    size = {} if isinstance(demo, SceneDemo) else {"cell_inches": _PHOTO_INCHES}
    save_overview(rows, names, demo.out / name, **size)


def _drawn(demo: DemoSettings) -> list[dict[str, Any]]:
    """Records of the held-out images that are drawn: scenes with the most classes, varied photographs."""
    dataset = ShardReader(demo.held_out)
    labels = [dataset.read(row, ["image_labels"])["image_labels"] or () for row in range(len(dataset))]
    if isinstance(demo, SceneDemo):
        chosen = sorted(range(len(dataset)), key=lambda row: -len(labels[row]))
    else:
        chosen = varied(labels)
    return [dataset.read(row) for row in chosen[:_ROWS]]


def varied(labels: Sequence[Sequence[int]]) -> list[int]:
    """Rows with labels in such an order that each shows classes which the rows before it show least.

    Args:
        labels: class indices of each row; rows without any are left out.
    """
    shown: Counter[int] = Counter()
    left, order = [row for row, classes in enumerate(labels) if classes], []
    while left:
        row = min(left, key=lambda row: min(shown[c] for c in labels[row]))
        left.remove(row)
        order.append(row)
        shown.update(labels[row])
    return order


def _cams_of(
    demo: DemoSettings, records: list[dict[str, Any]], names: tuple[str, ...]
) -> list[dict[str, NDArray[np.float32]]]:
    """For each image the highest CAM over its classes, by column title."""
    from ray_wsss.models.store import load_classifier
    from ray_wsss.ops.resize import resize_map, shrink
    from ray_wsss.runs.classifier_side import with_classifier_side
    from ray_wsss.stages.cams import cams_of

    found: list[dict[str, NDArray[np.float32]]] = [{} for _ in records]
    for name in names:
        model, _ = load_classifier(demo.classifier(name))
        config = with_classifier_side(demo.recipe.label, demo.classifier(name))
        for record, cams in zip(records, found):
            pixels = _pixels(record)
            pairs = cams_of(model, [shrink(pixels, config.max_side_px)], [record["image_labels"]], config)
            highest = pairs.cam.amax(0).numpy()
            cams["CAM with CPM" if name == "cpm" else "CAM"] = resize_map(highest, pixels.shape[:2])
    return found


def _pixels(record: dict[str, Any]) -> NDArray[np.uint8]:
    return decode_image(record["image"], record["orientation"])


def _truth(record: dict[str, Any], classes: int) -> dict[str, LabelMap]:
    return {"ground truth": decode_mask(record["mask"], classes)} if record["mask"] is not None else {}
