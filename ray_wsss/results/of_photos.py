"""Measurements on genuine photographs: recipes on COCO's, and clicks on objects."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_wsss.benchmark.recipes import SCORES, compare_recipes, mean_and_spread
from ray_wsss.cluster.stages.ingest import ingest_once
from ray_wsss.config import SamConfig, SamName
from ray_wsss.data.coco import read_coco
from ray_wsss.models.promptable.build import build_model
from ray_wsss.pretraining import photos
from ray_wsss.pretraining.clicks import LEAST_SHARE, ClickFigures, measure_clicks
from ray_wsss.results.markdown import table
from ray_wsss.results.setup import Setup
from ray_wsss.storage import write_json

_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "without CPM": {"cpm.enabled": False, "sam.name": "lite"},
    "with CPM": {"sam.name": "lite"},
    "with CPM, labels by affinity": {"sam.name": "lite", "label.affinity_steps": 2},
}
_BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "Lite0": {"sam.name": "lite"},
    "Lite2": {"sam.name": "lite", "classifier.backbone": "tf_efficientnet_lite2"},
    "Lite0 + Lite2": {
        "sam.name": "lite",
        "classifier.backbone": "tf_efficientnet_lite0+tf_efficientnet_lite2",
    },
}
_SEGMENTERS: Mapping[str, Mapping[str, Any]] = {
    name: {
        "sam.name": "lite",
        "segmenter.epochs": 2,
        "segmenter.architecture": name,
        "segmenter.output_stride": stride,
    }
    for name, stride in {"deeplabv3": 16, "deeplabv3plus": 16, "segformer": 32}.items()
}
"""Two epochs instead of six, so that all of them take an hour and not three."""
_TEN_CLASSES = {
    *("person", "dining table", "bowl", "chair", "toilet", "tv", "refrigerator", "oven", "cup", "sink"),
}
"""Those that take 2 % of the image or more in most of COCO's photographs to train on."""
_CLICKS: Mapping[str, tuple[str, float]] = {
    "photographs of GrabCut, VOC and matting": ("photos_masks_eval/annotations/gsc151.json", 0.0),
    "frames of videos (DAVIS)": ("photos_masks_eval/annotations/davis_val.json", 0.0),
    "COCO, objects of 1 % of the image or more": ("coco/annotations/instances_val.json", LEAST_SHARE),
}
"""Files below ``Setup.data``, and the share of the image below which an object is left out."""
_FIGURES = "compared.json"
"""File with the scores of a comparison, in the folder of its measurement."""
_MODELS: tuple[SamName, ...] = ("lite", "tiny")


def run_photos(setup: Setup) -> None:
    """CPM and affinity on COCO's photographs, 460 to train on and 185 held out, with all 80 classes."""
    _compare(setup, "photos", "photos", _VARIANTS, _data(setup) / "coco/annotations")


def run_backbones(setup: Setup) -> None:
    """Backbones of the classifier on COCO's photographs with ten classes."""
    _compare(setup, "backbones", "backbones", _BACKBONES, with_ten_classes(setup))


def run_segmenters(setup: Setup) -> None:
    """Architectures of the segmenter, on the labels of the backbones' first classifier."""
    _compare(setup, "segmenters", "backbones", _SEGMENTERS, with_ten_classes(setup), segmenter=True)


def _compare(
    setup: Setup,
    name: str,
    folder: str,
    variants: Mapping[str, Mapping[str, Any]],
    annotations: Path,
    *,
    segmenter: bool = False,
) -> None:
    """Compare variants on COCO's photographs; measurements with the same folder share data and networks."""
    shared = setup.out / folder
    for part in ("train", "val"):
        source = read_coco(_data(setup) / "coco/images", annotations / f"instances_{part}.json")
        ingest_once(source, out=shared / part, cluster=None)
    sets = {"dataset": shared / "train", "held_out": shared / "val", "out": shared / "compared"}
    found = compare_recipes(setup.photo_recipe, variants, **sets, seeds=setup.seeds, segmenter=segmenter)
    write_json(found, setup.out / name / _FIGURES)


def with_ten_classes(setup: Setup) -> Path:
    """Write COCO's annotations of ten classes; images without any of them stay, as negatives.

    Returns:
        Their folder.
    """
    folder = setup.out / "backbones" / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        file = f"instances_{part}.json"
        content = json.loads((_data(setup) / "coco/annotations" / file).read_text(encoding="utf-8"))
        kept = [each for each in content["categories"] if each["name"] in _TEN_CLASSES]
        ids = {each["id"] for each in kept}
        objects = [each for each in content["annotations"] if each["category_id"] in ids]
        write_json(content | {"categories": kept, "annotations": objects}, folder / file)
    return folder


def read_photos(setup: Setup) -> dict[str, str]:
    """Mean scores with CPM and without, and their spread over the seeds."""
    return {"photos": _scores(setup, "photos", "preset `photos`, `lite`", tuple(SCORES))}


def read_backbones(setup: Setup) -> dict[str, str]:
    """Mean scores of each backbone, and their spread over the seeds."""
    return {"backbones": _scores(setup, "backbones", "backbone", ("cam_best", "pseudo_label"))}


def read_segmenters(setup: Setup) -> dict[str, str]:
    """Mean score of each architecture, and its spread over the seeds."""
    return {"segmenters": _scores(setup, "segmenters", "architecture", ("segmenter",))}


def _scores(setup: Setup, name: str, what: str, wanted: Sequence[str]) -> str:
    found = json.loads((setup.out / name / _FIGURES).read_text(encoding="utf-8"))
    places, miou = [found["seeds"].index(seed) for seed in setup.seeds], found["miou"]
    keys = [key for key in wanted if all(key in scores for scores in miou.values())]
    rows = [
        [variant, *(mean_and_spread([scores[key][place] for place in places]) for key in keys)]
        for variant, scores in miou.items()
    ]
    return table([what, *(SCORES[key] for key in keys)], rows)


def run_clicks(setup: Setup) -> None:
    """One click at the centre of each object, answered by the SAMs of the package."""
    stored, data = setup.out / "clicks" / "clicks.json", _data(setup)
    if stored.exists():
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in _MODELS:
        sam = build_model(SamConfig(name=name))
        for title, (file, least_share) in _CLICKS.items():
            of_file: ClickFigures = measure_clicks(
                sam, list(photos.read_coco(Path(file).stem, data / file)), least_share
            )
            found.setdefault(title, {})[name] = of_file.as_json()
    stored.parent.mkdir(parents=True, exist_ok=True)
    write_json(found, stored)


def read_clicks(setup: Setup) -> dict[str, str]:
    """Mean IoU of the mask that each model chooses."""
    found = json.loads((setup.out / "clicks" / "clicks.json").read_text(encoding="utf-8"))
    rows = []
    for title, by_model in found.items():
        scores = [f"{by_model[name]['best_iou']:.2f}" for name in _MODELS]
        rows.append([title, str(by_model[_MODELS[0]]["objects"]), *scores])
    return {"clicks": table(["mean IoU", "objects", *_MODELS], rows)}


def _data(setup: Setup) -> Path:
    assert setup.data is not None  # the job checks it
    return setup.data
