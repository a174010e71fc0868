"""Progress of a run: a bar in a terminal, else a log line every 15 seconds."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ray_wsss.console import counted, tell_progress

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0


class ImageProgress:
    """Images done, images per second and time left, on stderr.

    Args:
        stage: name of the command.
        total: number of images.
        before: number of images that an earlier run has done; the speed leaves them out.
    """

    def __init__(self, stage: str, total: int, before: int) -> None:
        self.stage, self.total = stage, total
        self.done, self.errors = before, 0
        # Time at which the first images arrived, and their number. The speed is measured from then on, since
        # the time that Ray takes to start says nothing about the time left.
        self._first: tuple[float, int] | None = None
        self._next_line = time.perf_counter() + _SECONDS_BETWEEN_LINES
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                "{task.description}",
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} images, {task.fields[speed]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(stage, total=total, completed=before, speed="starting")

    def __enter__(self) -> "ImageProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, images: int, errors: int) -> None:
        """Count ``images`` more images as done, ``errors`` of which failed."""
        now = time.perf_counter()
        self.done += images
        self.errors += errors
        tell_progress(self.done, self.total)
        self._first = self._first or (now, self.done)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, speed=self._speed())
        elif now >= self._next_line:
            self._next_line = now + _SECONDS_BETWEEN_LINES
            log.info("%s: %s", self.stage, self._line())

    @property
    def images_per_s(self) -> float:
        """Speed since the first images arrived; 0 until further ones arrive."""
        if self._first is None:
            return 0.0
        since, done = self._first
        return (self.done - done) / max(time.perf_counter() - since, 1e-9)

    def _speed(self) -> str:
        speed = f"{self.images_per_s:.1f} images/s" if self.images_per_s else "starting"
        return f"{speed}, {counted(self.errors, 'error')}" if self.errors else speed

    def _line(self) -> str:
        done = f"{self.done:,} of {self.total:,} images, {self._speed()}"
        if not self.images_per_s:
            return done
        hours, minutes = divmod(round((self.total - self.done) / self.images_per_s / 60), 60)
        return f"{done}, {hours} h {minutes:02d} min left"
