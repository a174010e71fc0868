"""Segment everything on photographs with masks, and print how many of their objects are found.

    python jobs/evaluate_everything.py --annotations gsc151.json --every 8 --segments.points-per-side 16

A line per file has the share of the objects that some mask fits with an IoU of 0.5 and of 0.75 or more, and
the mean number of masks of a photograph. Objects below 1 % of the image and crowds are left out.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from ray_wsss.commands.flags import PARSERS
from ray_wsss.config import SamConfig, SamName, SegmentsConfig
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.build import build_model
from ray_wsss.pretraining.clicks import LEAST_SHARE
from ray_wsss.pretraining.everything import measure_everything
from ray_wsss.pretraining.photos import read_coco


@dataclass(frozen=True, kw_only=True)
class EvaluateEverything:
    """Settings of the measurement."""

    annotations: list[Path]
    """Files in COCO's format; their images are in the folder ../images."""
    model: SamName = "lite"
    """SAM to measure."""
    checkpoint: str | None = None
    """Weights of the model, as --sam.checkpoint."""
    every: int = 1
    """One photograph in so many is taken, at least 1."""
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)


def main(config: EvaluateEverything) -> None:
    """Measure, and print a line per file."""
    sam_config = SamConfig(name=config.model, checkpoint=config.checkpoint)
    sam, segments = build_model(sam_config), config.segments.suiting(sam_config.card)
    for path in config.annotations:
        photos = list(read_coco(path.stem, path))[:: max(1, config.every)]
        figures = measure_everything(sam, photos, segments, LEAST_SHARE).as_json()
        thresholds = dict(zip(("pred_iou_thresh", "stability_score_thresh"), segments.thresholds))
        print(
            json.dumps({"model": config.model, "annotations": path.stem} | thresholds | figures), flush=True
        )


if __name__ == "__main__":
    try:
        main(tyro.cli(EvaluateEverything, description=__doc__, registry=PARSERS))
    except UserError as error:
        sys.exit(f"evaluate_everything.py: {error}")
