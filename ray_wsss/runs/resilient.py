"""Run a stage so that an image on which it fails stops nothing.

Out of memory: the images are tried once more, then in halves, down to one image. Any other failure: each
image is tried alone, and those that fail alone are marked as failed. Then all are tried together again, so
that the result is the same as if the marked images could not have been decoded. In particular, a failure that
happened once leaves no trace. Only the results of halves may differ from those of the whole, by rounding: a
stage that is called with fewer images makes other batches of them.

What is not the fault of an image (`runs.failures.fault_of`) is raised.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import torch

from ray_wsss.runs.failures import Fault, fault_of, reason_of
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Failure:
    fault: Fault
    reason: str


def run_stage(
    stage: Callable[[Sequence[PreparedImage]], tuple[pa.Table, Tally]], images: Sequence[PreparedImage]
) -> tuple[pa.Table, Tally]:
    """The table and the tally of a stage; an image on which it fails has the reason in ``error``.

    Args:
        stage: gives one row per image, in order, also for an image that has an ``error`` already.

    Raises:
        Exception: as the stage raised it, if it is not the fault of an image.
    """
    results = run_in_pieces(stage, images, mark_failed)
    if len(results) == 1:
        return results[0]
    tables, tallies = zip(*results)
    return pa.concat_tables(tables).combine_chunks(), Tally.total(tallies)


def mark_failed(image: PreparedImage, reason: str) -> PreparedImage:
    """The image as if it could not have been decoded; a reason that it has already stays."""
    return PreparedImage(image_id=image.image_id, error=image.error or reason)


def run_in_pieces(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], mark: Callable[[Item, str], Item]
) -> list[Result]:
    """Results of ``work`` on consecutive pieces of ``items``: one piece, unless memory was short.

    Args:
        work: may be called several times with the same item.
        mark: makes an item that ``work`` only records as failed, with the reason.

    Raises:
        Exception: as ``work`` raised it, if it is not the fault of an item.
    """
    done = _attempt(work, items)
    if isinstance(done, _Failure) and done.fault == "memory":
        # Another process may have had the memory for a moment.
        done = _attempt(work, items)
    return _recover(work, items, mark, done) if isinstance(done, _Failure) else done


def _run(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], mark: Callable[[Item, str], Item]
) -> list[Result]:
    done = _attempt(work, items)
    return _recover(work, items, mark, done) if isinstance(done, _Failure) else done


def _recover(
    work: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    mark: Callable[[Item, str], Item],
    failure: _Failure,
) -> list[Result]:
    """Results of items on which ``work`` has failed."""
    if len(items) == 1:
        return [work([mark(items[0], failure.reason)])]
    if failure.fault == "memory":
        half = len(items) // 2
        return _run(work, items[:half], mark) + _run(work, items[half:], mark)
    marked: list[Item] = []
    for item in items:
        alone = _attempt(work, [item])
        marked.append(mark(item, alone.reason) if isinstance(alone, _Failure) else item)
    together = _attempt(work, marked)
    if not isinstance(together, _Failure):
        return together
    if together.fault == "memory":
        return _recover(work, marked, mark, together)
    return [result for item in marked for result in _run(work, [item], mark)]


def _attempt(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result] | _Failure:
    try:
        return [work(items)]
    except Exception as error:
        if fault_of(error) == "set-up":
            raise
        failure = _Failure(fault_of(error), reason_of(error))
    log.warning("%d images failed together, or one of them: %s", len(items), failure.reason)
    # Here, the exception is gone, and with it the tensors of the functions it passed through.
    if failure.fault == "memory":
        gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # raises if the process can't use its GPU any more
        torch.cuda.empty_cache()
    return failure
