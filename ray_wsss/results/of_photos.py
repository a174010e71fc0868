"""Measurements on genuine photographs: CPM on COCO's, and clicks on objects."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_wsss.benchmark.recipes import SCORES, compare_recipes
from ray_wsss.cluster.stages.ingest import ingest_once
from ray_wsss.config import SamConfig, SamName
from ray_wsss.data.coco import read_coco
from ray_wsss.models.promptable.build import build_model
from ray_wsss.pretraining import photos
from ray_wsss.pretraining.clicks import LEAST_SHARE, ClickFigures, measure_clicks
from ray_wsss.results.markdown import mean_and_spread, table
from ray_wsss.results.setup import Setup
from ray_wsss.storage import write_json

_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "without CPM": {"cpm.enabled": False, "sam.name": "lite"},
    "with CPM": {"sam.name": "lite"},
    "with CPM, labels by affinity": {"sam.name": "lite", "label.affinity_steps": 2},
}
_CLICKS: Mapping[str, tuple[str, float]] = {
    "photographs of GrabCut, VOC and matting": ("photos_masks_eval/annotations/gsc151.json", 0.0),
    "frames of videos (DAVIS)": ("photos_masks_eval/annotations/davis_val.json", 0.0),
    "COCO, objects of 1 % of the image or more": ("coco/annotations/instances_val.json", LEAST_SHARE),
}
"""Files below ``Setup.data``, and the share of the image below which an object is left out."""
_MODELS: tuple[SamName, ...] = ("lite", "tiny")


def run_photos(setup: Setup) -> None:
    """CPM and affinity on COCO's photographs, 460 to train on and 185 held out."""
    out, data = setup.out / "photos", _data(setup)
    for name in ("train", "val"):
        source = read_coco(data / "coco/images", data / f"coco/annotations/instances_{name}.json")
        ingest_once(source, out=out / name, cluster=None)
    sets = {"dataset": out / "train", "held_out": out / "val", "out": out / "compared"}
    compare_recipes(setup.photo_recipe, _VARIANTS, **sets, seeds=setup.seeds, segmenter=False)


def read_photos(setup: Setup) -> dict[str, str]:
    """Mean scores of each variant, and their spread over the seeds."""
    path = setup.out / "photos" / "compared" / "compare_recipes.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    places, miou = [found["seeds"].index(seed) for seed in setup.seeds], found["miou"]
    keys = [key for key in SCORES if all(key in scores for scores in miou.values())]
    rows = [
        [name, *(mean_and_spread([scores[key][place] for place in places]) for key in keys)]
        for name, scores in miou.items()
    ]
    return {"photos": table(["preset `photos`, `lite`", *(SCORES[key] for key in keys)], rows)}


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
