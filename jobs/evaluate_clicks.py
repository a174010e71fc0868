"""Click on the centre of every object, and print how well SAM's masks fit.

    python jobs/evaluate_clicks.py --models tiny lite --annotations gsc151.json davis_val.json --least-share 0
    python jobs/evaluate_clicks.py --models tiny lite --annotations coco/annotations/instances_val.json

The centre is the pixel farthest from the object's border. A line per model and file has mean IoUs: of the
mask with the highest predicted IoU among SAM's outputs 1 to 3, of output 3 (whole), of output 0 (single), and
of the best of 1 to 3. Objects below 1 % of the image, crowds, and pixels of ``ignore_segmentation`` are left
out.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ray_wsss.commands.flags import PARSERS
from ray_wsss.config import SamConfig, SamName
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.build import build_model
from ray_wsss.pretraining.clicks import LEAST_SHARE, ClickFigures, measure_clicks
from ray_wsss.pretraining.photos import read_coco


@dataclass(frozen=True, kw_only=True)
class EvaluateClicks:
    """Settings of the measurement."""

    annotations: list[Path]
    """Files in COCO's format; their images are in the folder ../images."""
    models: list[SamName]
    """SAMs to measure."""
    checkpoint: str | None = None
    """Weights of the model, as --sam.checkpoint."""
    least_share: float = LEAST_SHARE
    """Share of the image's pixels below which an object is left out."""
    json: Path | None = None
    """File to which the figures are also written, as JSON."""


def main(config: EvaluateClicks) -> None:
    """Measure, and print a line per model and file, and one per model over all files."""
    lines = []
    for name in config.models:
        sam = build_model(SamConfig(name=name, checkpoint=config.checkpoint))
        total = ClickFigures()
        for path in config.annotations:
            figures = measure_clicks(sam, list(read_coco(path.stem, path)), config.least_share)
            total.extend(figures)
            lines.append({"model": name, "annotations": path.stem} | figures.as_json())
            print(json.dumps(lines[-1]), flush=True)
        if len(config.annotations) > 1:
            lines.append({"model": name, "annotations": "all"} | total.as_json())
            print(json.dumps(lines[-1]), flush=True)
    if config.json:
        config.json.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(EvaluateClicks, description=__doc__, registry=PARSERS))
    except UserError as error:
        sys.exit(f"evaluate_clicks.py: {error}")
