"""What commands and scripts show: the package logs, and this puts the log on the screen."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _ToStream(logging.Handler):
    """Writes messages as plain lines, at once: a log in a pipe is read while the run goes on.

    Args:
        stream: None: standard output, whichever stream that is at the time.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=self.stream or sys.stdout, flush=True)


@contextmanager
def logged_to(stream: TextIO | None = None) -> Iterator[None]:
    """Write what the package logs to ``stream``, or to standard output, as plain lines."""
    logger, handler = logging.getLogger("ray_wsss"), _ToStream(stream)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
