"""Console output of commands and scripts: the log messages of the package, counts, how far its work is."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO


class _ToStream(logging.Handler):
    """Prints log messages as lines and flushes each, so a log in a pipe can be read during the run.

    Args:
        stream: stream to print to; None for standard output, looked up at each message.
        as_json: whether a line is a JSON object with time, level, logger and message, or the message alone.
    """

    def __init__(self, stream: TextIO | None, *, as_json: bool) -> None:
        super().__init__()
        self.stream, self.as_json = stream, as_json

    def emit(self, record: logging.LogRecord) -> None:
        line = _describe(record) if self.as_json else record.getMessage()
        print(line, file=self.stream or sys.stdout, flush=True)


def _describe(record: logging.LogRecord) -> str:
    """A message as JSON; the time is UTC, in ISO 8601 with milliseconds."""
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    told = {"time": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
    return json.dumps(told, ensure_ascii=False)


@contextmanager
def logged_to(stream: TextIO | None = None, *, as_json: bool = False) -> Iterator[None]:
    """Print the package's log messages (INFO and above) as lines, by default to standard output.

    Args:
        as_json: whether each line is a JSON object with time, level, logger and message.
    """
    logger, handler = logging.getLogger("ray_wsss"), _ToStream(stream, as_json=as_json)
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


def counted(count: float, what: str) -> str:
    """``1 node``, ``1,200 nodes``, ``0.5 CPUs``."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {what}" if count == 1 else f"{number} {what}s"
