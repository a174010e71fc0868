"""The demo's pictures: a first look at the scenes, and the results of all stages."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.demo.settings import DemoSettings
from ray_wsss.figures.overview import OverviewRow, save_overview
from ray_wsss.label_format import LabelMap

_ROWS = 6
"""Scenes in a picture."""


def save_first_look(demo: DemoSettings, *, with_cams: bool = False) -> None:
    """Write ``first_look.png``: scenes, their ground truth and, ``with_cams``, the CAMs without CPM."""
    records = _crowded_scenes(demo)
    cams = _cams_of(demo, records, ("plain",)) if with_cams else [{} for _ in records]
    rows = [
        OverviewRow(image=_pixels(record), cams=of_scene, points=[], label_maps=_truth(record))
        for record, of_scene in zip(records, cams)
    ]
    save_overview(rows, DatasetMetadata.load(demo.held_out).class_names, demo.out / "first_look.png")


def save_overview_of(demo: DemoSettings) -> None:
    """Write ``overview.png``: the held-out scenes with the most classes, and what stages make of them."""
    from ray_wsss.stages.predict import Predictor

    labels = ShardReader(demo.labels("held_out", "cpm"))
    segmenter = Predictor.load(demo.out / "segmenter", demo.recipe.predict)
    records, rows = _crowded_scenes(demo), []
    for record, cams in zip(records, _cams_of(demo, records, ("plain", "cpm"))):
        label, pixels = labels.read(labels.index_of(record["image_id"])), _pixels(record)
        maps = {"pseudo label": decode_mask(label["pseudo_label"]), "segmenter": segmenter(pixels)}
        rows.append(
            OverviewRow(
                image=pixels,
                cams=cams,
                points=[(s["class_index"], *xy) for s in label["segments"] for xy in s["points_xy"]],
                label_maps=maps | _truth(record),
            )
        )
    save_overview(rows, DatasetMetadata.load(demo.held_out).class_names, demo.out / "overview.png")


def _crowded_scenes(demo: DemoSettings) -> list[dict[str, Any]]:
    """Records of the held-out scenes with the most classes."""
    dataset = ShardReader(demo.held_out)
    labels = [dataset.read(row, ["image_labels"])["image_labels"] or () for row in range(len(dataset))]
    by_classes = sorted(range(len(dataset)), key=lambda row: -len(labels[row]))
    return [dataset.read(row) for row in by_classes[:_ROWS]]


def _cams_of(
    demo: DemoSettings, records: list[dict[str, Any]], names: tuple[str, ...]
) -> list[dict[str, NDArray[np.float32]]]:
    """For each scene the highest CAM over its classes, by column title."""
    from ray_wsss.models.store import load_classifier
    from ray_wsss.runs.classifier_side import with_classifier_side
    from ray_wsss.stages.cams import cams_of

    found: list[dict[str, NDArray[np.float32]]] = [{} for _ in records]
    for name in names:
        model, _ = load_classifier(demo.classifier(name))
        config = with_classifier_side(demo.recipe.label, demo.classifier(name))
        for record, cams in zip(records, found):
            pairs = cams_of(model, [_pixels(record)], [record["image_labels"]], config)
            cams["CAM with CPM" if name == "cpm" else "CAM"] = pairs.cam.amax(0).numpy()
    return found


def _pixels(record: dict[str, Any]) -> NDArray[np.uint8]:
    return decode_image(record["image"], record["orientation"])


def _truth(record: dict[str, Any]) -> dict[str, LabelMap]:
    return {"ground truth": decode_mask(record["mask"])}
