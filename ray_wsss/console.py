"""Console output of commands and scripts: the log messages of the package, and how far its work is."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class _ToStream(logging.Handler):
    """Prints log messages as plain lines and flushes each, so a log in a pipe can be read during the run.

    Args:
        stream: stream to print to; None for standard output, looked up at each message.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=self.stream or sys.stdout, flush=True)


@contextmanager
def logged_to(stream: TextIO | None = None) -> Iterator[None]:
    """Print the package's log messages (INFO and above) as plain lines, by default to standard output."""
    logger, handler = logging.getLogger("ray_wsss"), _ToStream(stream)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


_listeners: list[Callable[[int, int], None]] = []


def tell_progress(done: int, total: int) -> None:
    """Say that ``done`` of ``total`` images or iterations of the work at hand are done."""
    for listener in _listeners:
        listener(done, total)


@contextmanager
def progress_told_to(listener: Callable[[int, int], None]) -> Iterator[None]:
    """Call ``listener`` with what `tell_progress` is told in this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
