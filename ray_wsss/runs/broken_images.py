"""Images that a training run leaves out because they are broken: the same on all workers, judged and listed.

A worker sees only the broken images of its own share. Before each report, the workers tell each other.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.data.schema import write_errors
from ray_wsss.errors import TooManyFailedError

log = logging.getLogger(__name__)

Broken = tuple[int, str, str]
"""(place in the endless sequence of images, image id, reason)."""
_LOGGED = 10
"""Most images that get a line of their own in the log."""


class Workers(Protocol):
    """The part of `training.loop.Session` that is needed here."""

    rank: int
    world_size: int
    device: torch.device
    out: Path

    def mean_over_workers(self, value: torch.Tensor) -> torch.Tensor: ...


class BrokenImages:
    """Counts and lists the broken images of a training run; ``OUT/errors.parquet`` has them.

    Args:
        reasons: why images are left out, by id. It grows here, and the run's checkpoints keep it.
        workers: the workers of the run, as this one sees them.
        limit: how many images may be broken.
    """

    def __init__(self, reasons: dict[str, str], workers: Workers, limit: ErrorLimit) -> None:
        self.reasons, self.workers, self.limit = reasons, workers, limit
        self._noted: list[Broken] = []

    def note(self, broken: Sequence[Broken | None]) -> None:
        """Note the broken images of this worker's share of a batch; None stands for an image in order."""
        self._noted += [entry for entry in broken if entry is not None]

    def share(self, drawn: int, *, at_end: bool) -> dict[str, float]:
        """Tell all workers what was noted. Every rank must call this equally often.

        Args:
            drawn: number of different images whose turn has come, on all workers.
            at_end: no images follow.

        Returns:
            The number of broken images so far as the metric ``errors``; nothing if there are none.

        Raises:
            TooManyFailedError: on every rank, if too many of the images are broken.
        """
        texts = gather_texts(self.workers, json.dumps(self._noted) if self._noted else "")
        self._noted = []
        found = sorted(tuple(entry) for text in texts if text for entry in json.loads(text))
        before = len(self.reasons)
        for _, image_id, reason in found:
            if image_id not in self.reasons:
                self._add(image_id, reason)
        if self.workers.rank == 0 and (at_end or len(self.reasons) > before):
            write_errors(list(self.reasons.items()), self.workers.out)
        self._judge(drawn, at_end)
        return {"errors": float(len(self.reasons))} if self.reasons else {}

    def _add(self, image_id: str, reason: str) -> None:
        self.reasons[image_id] = reason
        if self.workers.rank == 0 and len(self.reasons) <= _LOGGED:
            more = "; further ones are listed only" if len(self.reasons) == _LOGGED else ""
            log.warning("%s is left out: %s%s", image_id, reason, more)

    def _judge(self, drawn: int, at_end: bool) -> None:
        errors, listed = len(self.reasons), self.workers.out / "errors.parquet"
        try:
            first = next(iter(self.reasons.values()), "")
            self.limit.check(drawn - errors, errors, first, at_end=at_end)
        except TooManyFailedError as error:
            raise TooManyFailedError(f"{error}; {listed} lists all") from error
        if at_end and errors and self.workers.rank == 0:
            log.warning("%d of %d images were left out; %s says why", errors, drawn, listed)


def gather_texts(workers: Workers, text: str) -> list[str]:
    """The texts of all workers, by rank. Every rank must call this equally often."""
    if workers.world_size == 1:
        return [text]
    data = text.encode()
    lengths = torch.zeros(workers.world_size, device=workers.device)
    lengths[workers.rank] = len(data)
    counts = _sum(workers, lengths).tolist()
    letters = torch.zeros(workers.world_size, max(counts), device=workers.device)
    if not letters.numel():
        return [""] * workers.world_size
    letters[workers.rank, : len(data)] = torch.tensor(list(data), dtype=torch.float)
    rows = _sum(workers, letters).tolist()
    return [bytes(row[:count]).decode() for row, count in zip(rows, counts)]


def _sum(workers: Workers, value: torch.Tensor) -> torch.Tensor:
    """Sum over the workers of whole numbers below 2**24, which float32 holds exactly."""
    return (workers.mean_over_workers(value) * workers.world_size).round().long()
