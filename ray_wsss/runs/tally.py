"""Counts of a chunk of work, and the seconds that each phase of it took."""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

COUNTS = ("images", "prompts", "masks", "errors")
"""Names of the counts that every stage's tally has."""


@dataclass
class Tally:
    """Counts of images, prompts, masks and errors, and seconds by phase; tallies can be added.

    Phases: decode (image files to pixels), cam (classifier), backbone (its features), encode (SAM's encoder),
    prompt (peaks, SAM's decoder, aggregation), predict (segmenter), write (PNG, RLE, Parquet), and wait (an
    actor waiting for images).
    """

    images: int = 0
    """Images that did not fail."""
    prompts: int = 0
    """Points and boxes given to SAM."""
    masks: int = 0
    errors: int = 0
    """Images that failed."""
    unknown: int = 0
    """Those of ``images`` that got no pseudo label because their image labels are unknown."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, other: "Tally") -> None:
        """Add ``other`` to this one."""
        for name in (*COUNTS, "unknown"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The sum of ``tallies``."""
        result = cls()
        for tally in tallies:
            result.add(tally)
        return result

    @contextmanager
    def phase(self, name: str, device: torch.device | None = None) -> Generator[None]:
        """Add the seconds of the ``with`` block to a phase, including its work on a CUDA ``device``."""
        start = time.perf_counter()
        yield
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
