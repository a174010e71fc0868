"""Settings of exports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ray_wsss.errors import UserError, did_you_mean

InstancesBy = Literal["components", "class"]
ModelFormat = Literal["torch-export", "onnx", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class ExportFilter:
    """Which masks are left out of an export.

    Masks dropped for their score or size become ignored pixels in label maps, since they may not be
    background. Classes that were not chosen become background.
    """

    min_score: float | None = None
    """Lowest score of a mask: SAM's predicted IoU, times the mean CAM if there is one, in [0, 1].
    Needs --labels.
    Masks below it are left out; label maps have ignored pixels in their place."""
    min_area_px: int = 1
    """Smallest area of an instance, in pixels, at least 1.
    Smaller ones are left out; label maps have ignored pixels in their place."""
    classes: tuple[str, ...] = ()
    """Classes to export, renumbered in the order of the data set. Without it all classes."""

    def __post_init__(self) -> None:
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise UserError(f"--min-score is {self.min_score}; expected a score in [0, 1]")
        if self.min_area_px < 1:
            raise UserError(f"--min-area-px is {self.min_area_px}; expected at least 1 pixel")

    def keep_classes(self, class_names: Sequence[str]) -> list[int]:
        """Indices of the classes to export. Raises UserError for a class that does not exist."""
        for name in self.classes:
            if name not in class_names:
                hint = did_you_mean(name, class_names, f"there are {', '.join(class_names[:20])}")
                raise UserError(f"--classes {name}: no such class; {hint}")
        return [k for k, name in enumerate(class_names) if not self.classes or name in self.classes]
