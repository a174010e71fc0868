"""Settings of the trained segmenter's use."""

from dataclasses import dataclass
from typing import ClassVar

from ray_wsss.config.checks import check


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """How the segmenter is applied to an image, by evaluate, predict and the demo.

    One view by default, as DeepLab, MMSegmentation and others report their single-scale figures. Their
    multi-scale figures are the mean over scales 0.5, 0.75, 1, 1.25, 1.5, 1.75, each mirrored as well: twelve
    views and 17 times the pixels.
    """

    section: ClassVar[str] = "predict"

    scales: tuple[float, ...] = (1.0,)
    """Image scales whose class probabilities are averaged."""
    flip: bool = False
    """Average with the mirrored image at every scale: twice the work."""
    max_side_px: int = 1024
    """Images with a longer side are looked at at this size and the probabilities scaled back up."""
    batch_size: int = 4
    """Images (of one size) per pass of the network."""

    def __post_init__(self) -> None:
        check(self, lambda v: v and all(0 < s <= 4 for s in v), "scales", "one or more scales in (0, 4]")
        check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")
        check(self, lambda v: v >= 1, "batch_size", "at least 1 image")
