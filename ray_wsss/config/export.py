"""Settings of exports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ray_wsss.errors import UserError, did_you_mean

InstancesBy = Literal["components", "class"]


@dataclass(frozen=True, kw_only=True)
class ExportFilter:
    """What is left out.

    What is dropped for its score or size becomes 255 in label maps: nobody says that it is background.
    Other classes than the chosen ones become background.
    """

    min_score: float | None = None
    """Least score (SAM's predicted IoU times mean CAM, in [0, 1]); what is dropped becomes 255 (ignore)."""
    min_area_px: int = 1
    """Least area of an instance, in pixels; what is dropped becomes 255 (ignore)."""
    classes: tuple[str, ...] = ()
    """Export these classes alone, numbered anew in the data set's order. By default all."""

    def __post_init__(self) -> None:
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise UserError(f"--min-score is {self.min_score}; expected a score in [0, 1]")
        if self.min_area_px < 1:
            raise UserError(f"--min-area-px is {self.min_area_px}; expected at least 1 pixel")

    def keep_classes(self, class_names: Sequence[str]) -> list[int]:
        """Indices of the classes to export. Raises UserError for one that isn't there."""
        for name in self.classes:
            if name not in class_names:
                hint = did_you_mean(name, class_names, f"there are {', '.join(class_names[:20])}")
                raise UserError(f"--classes {name}: no such class; {hint}")
        return [k for k, name in enumerate(class_names) if not self.classes or name in self.classes]
