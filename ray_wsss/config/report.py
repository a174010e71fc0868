"""Settings of the HTML report."""

from dataclasses import dataclass

from ray_wsss.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report contains."""

    images: int | None = 60
    """Images in the gallery: a third the best, a third the worst, the rest at random. None: all."""
    skip_cams: bool = False
    """Leave out the CAMs, which take most of the time."""
    skip_predictions: bool = False
    """Leave out the predictions of the segmenter."""
    thumbnail_px: int = 256
    """Long side of the pictures, in pixels, 32 to 2048."""
    seed: int = 0
    """Seed of the random choice of images."""

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 0:
            raise UserError(f"--images is {self.images}; expected 0 or more, or all")
        if not 32 <= self.thumbnail_px <= 2048:
            raise UserError(f"--thumbnail-px is {self.thumbnail_px}; expected 32 to 2048 pixels")
