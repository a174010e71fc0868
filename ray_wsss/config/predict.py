"""Settings of prediction."""

from dataclasses import dataclass
from typing import ClassVar

from ray_wsss.config.checks import check, check_tiles, overlap_of_tiles


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """How the segmenter is applied to an image.

    The default is one view of each image, as in the single-scale figures of DeepLab and MMSegmentation. Their
    multi-scale figures average the scales 0.5, 0.75, 1, 1.25, 1.5 and 1.75, each also mirrored: 12 views and
    17 times the pixels.
    """

    section: ClassVar[str] = "predict"

    scales: tuple[float, ...] = (1.0,)
    """Image scales whose class probabilities are averaged, each in (0, 4]."""
    flip: bool = False
    """Average with the mirrored image at every scale; doubles the work."""
    max_side_px: int = 1024
    """Longest side of what the segmenter sees, in pixels, at least 32; larger images are scaled down."""
    tile_px: int | None = None
    """Side of the tiles in which larger images are predicted, in pixels: a multiple of 4, at least 64.
    No image is scaled down then. Choose about the size of the images that the segmenter was trained with.
    None: no tiles."""
    tile_overlap: int | None = None
    """Pixels that neighbouring tiles share, from 8 to half of tile_px. None: an eighth of tile_px.
    Where tiles overlap, their scores are averaged; the inner parts of a tile count more."""
    batch_size: int = 4
    """Images, or tiles, of one size per forward pass, at least 1."""
    max_pixels_per_pass: int = 8_000_000
    """Pixels that the segmenter sees in one forward pass, at the largest scale, at least 1.
    Larger images go in smaller batches, also with more classes. The default fits a GPU with 16 GiB."""

    def __post_init__(self) -> None:
        check(self, lambda v: v and all(0 < s <= 4 for s in v), "scales", "one or more scales in (0, 4]")
        check(self, lambda v: v >= 32, "max_side_px", "at least 32 pixels")
        check_tiles(self)
        check(self, lambda v: v >= 1, "batch_size", "at least 1 image")
        check(self, lambda v: v >= 1, "max_pixels_per_pass", "at least 1 pixel")

    @property
    def tile_overlap_px(self) -> int:
        """Pixels that neighbouring tiles share; 0 without tiles."""
        return overlap_of_tiles(self)

    def max_batch_pixels(self, num_labels: int) -> float:
        """Pixels of the images of one forward pass, at their own scale.

        The largest activations of a backbone take 1 KiB per pixel. The logits of all views take 4 bytes per
        label and cell, and a cell has 8 x 8 pixels or more.
        """
        of_views = sum(scale**2 for scale in self.scales) * (1 + self.flip)
        return self.max_pixels_per_pass / (max(1.0, *self.scales) ** 2 + num_labels * of_views / 16 / 1024)

    @property
    def max_scores(self) -> int:
        """Scores of pixels, one for each label, that are computed at a time, about 12 bytes each."""
        return 32 * self.max_pixels_per_pass
