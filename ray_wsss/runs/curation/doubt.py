"""Doubt about the pseudo label of an image, so that a person looks at the worst ones first.

    trust of a mask = stability x predicted IoU x (3 + mean CAM) / 4
    doubt of an image = 1 - (lowest trust of its masks) x (agreement with each other label map)

All values are in [0, 1]. Stability is the IoU of SAM's masks at logits above 1 and above -1; the mean CAM
over the mask tells how far CAM and mask agree; an agreement is the mean IoU over classes between the pseudo
label and another one of the same image: the prediction of a segmenter, or a label made with other prompts,
such as boxes instead of points. A mask that any of them doubts is doubtful, hence a product.

The mean CAM counts a quarter: CAMs are higher for some classes than for others, whatever the masks are. On
the demo's scenes a larger share ranked worse: with (1 + mean CAM) / 2, the areas under the ROC curve of
labels by points were 0.64, 0.79 and 0.84 for three seeds, instead of 0.76, 0.87 and 0.91. docs/results.md
("Doubt") has more figures.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from ray_wsss.label_format import LabelMap
from ray_wsss.runs.curation.agreement import mean_iou


def mask_trust(segment: Mapping[str, Any]) -> float:
    """Trust in the mask of a label's segment, in [0, 1].

    What is missing doubts nothing: labels of earlier versions have no stability, and masks of which there is
    no CAM no mean.
    """
    stability, cam_mean = (segment.get(name) for name in ("stability_score", "cam_mean"))
    factors = (
        1.0 if stability is None else stability,
        segment["sam_score"],
        1.0 if cam_mean is None else (3 + cam_mean) / 4,
    )
    return prod(min(1.0, max(0.0, factor)) for factor in factors)


def agreement(label_map: LabelMap, other: LabelMap) -> float:
    """Mean IoU over the classes of two label maps of an image, in [0, 1]; 1 if neither has a class.

    Raises:
        ValueError: their sizes differ.
    """
    found = mean_iou(label_map, other)
    return 1.0 if found is None else found


def doubt_with(doubt: float | None, agreed: float) -> float:
    """Doubt about an image's pseudo label that is also compared with another one.

    Args:
        doubt: `image_doubt` without it.
        agreed: `agreement` of the two.
    """
    return 1 - (1 - (doubt or 0.0)) * agreed


def image_doubt(segments: Sequence[Mapping[str, Any]], agreements: Iterable[float] = ()) -> float | None:
    """Doubt about an image's pseudo label, in [0, 1]; None if it has no mask and is compared with nothing.

    Args:
        segments: SAM's masks of the image, as in a label's row.
        agreements: `agreement` with each other label map of the image.
    """
    doubt = 1 - min(map(mask_trust, segments)) if segments else None
    for agreed in agreements:
        doubt = doubt_with(doubt, agreed)
    return doubt
