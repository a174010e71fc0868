"""What a chunk of work did and how long each phase of it took."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

COUNTS = ("images", "prompts", "masks", "errors")
"""The counts of a tally."""


@dataclass
class Tally:
    """Counts, and seconds by phase; tallies add up.

    Phases: decode (image files to pixels), cam (classifier), encode (SAM's encoder), prompt (peaks, SAM's
    decoder, aggregation), predict (segmenter), write (PNG, RLE, Parquet), and wait (an actor without an image
    to work on).
    """

    images: int = 0
    """Images that were done."""
    prompts: int = 0
    """Points that SAM was prompted with."""
    masks: int = 0
    errors: int = 0
    """Images that failed."""
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Add ``other`` to this one."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The sum of some tallies."""
        result = cls()
        for tally in tallies:
            result.add(tally)
        return result

    @contextmanager
    def phase(self, name: str, device: torch.device | None = None) -> Iterator[None]:
        """Count the time of the block as a phase; what runs on a GPU ``device`` is waited for."""
        start = time.perf_counter()
        yield
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
