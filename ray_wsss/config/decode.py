"""Settings of reading people's image files."""

from dataclasses import dataclass
from typing import Any, Literal

from ray_wsss.errors import UserError

Intensity = Literal["auto", "full"] | tuple[Literal["percentile"], float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """How images of more than 8 bits or of many channels become RGB of 8 bits.

    Images of 8 bits with one or three channels are what they are.
    """

    intensity: Intensity = "auto"
    """Values that become black and white, in images of more than 8 bits a channel.
    "full": the ends of the file format's scale, 0 and 65535 (0 and 1 for floats).
    "percentile LOW HIGH": these percentiles of each image's values, in [0, 100].
    "auto": "full", but percentiles 0.1 and 99.9 of an image that uses less than a quarter of the scale."""
    channels: tuple[int, ...] = ()
    """Channels of a TIFF that become red, green and blue, counted from 0; a single one becomes grey.
    Without it the first three."""

    def __post_init__(self) -> None:
        if not isinstance(self.intensity, str):
            _, low, high = self.intensity
            if not 0 <= low < high <= 100:
                raise UserError(f"--intensity percentile is {low} {high}; expected 0 <= LOW < HIGH <= 100")
        if len(self.channels) not in (0, 1, 3) or min(self.channels, default=0) < 0:
            found = " ".join(map(str, self.channels))
            raise UserError(f"--channels is {found}; expected one channel, or three, counted from 0")

    def noted(self) -> dict[str, Any]:
        """The settings that aren't the defaults, for manifests; `from_noted` is the inverse."""
        noted: dict[str, Any] = {}
        if self.intensity != "auto":
            noted["intensity"] = self.intensity if isinstance(self.intensity, str) else list(self.intensity)
        if self.channels:
            noted["channels"] = list(self.channels)
        return noted

    @classmethod
    def from_noted(cls, noted: dict[str, Any]) -> "DecodeConfig":
        """Settings from a manifest that has those of `noted` among others."""
        intensity: Any = noted.get("intensity", "auto")
        return cls(
            intensity=tuple(intensity) if isinstance(intensity, list) else intensity,
            channels=tuple(noted.get("channels", ())),
        )
